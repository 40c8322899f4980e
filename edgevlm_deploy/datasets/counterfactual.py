"""Rows that repeat another row on a picture with another background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgevlm_deploy.datasets.sample import SHOWN, Sample
from edgevlm_deploy.errors import DataError


def separate(samples: Sequence[Sample]) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """(samples, their counterfactuals); a counterfactual without answers or group takes its original's.

    Raises DataError when one names no sample, asks another question, or shows the same picture.
    """
    originals = {sample.id: sample for sample in samples if not sample.counterfactual_of}
    swapped = [sample for sample in samples if sample.counterfactual_of]
    wrong = [f"  {one.id}: {what}" for one in swapped if (what := _mistake(one, originals))]
    if wrong:
        more = [f"  … and {len(wrong) - SHOWN} more."] if len(wrong) > SHOWN else []
        raise DataError(
            "\n".join([f"{len(wrong)} rows with `counterfactual_of` cannot be used.", *wrong[:SHOWN], *more])
        )
    completed = (_completed(one, originals[one.counterfactual_of]) for one in swapped)
    return tuple(originals.values()), tuple(completed)


def _mistake(one: Sample, originals: dict[str, Sample]) -> str:
    original = originals.get(one.counterfactual_of)
    if original is None:
        return f"no row has the id {one.counterfactual_of!r}, or it is a counterfactual itself."
    if one.prompt != original.prompt:
        return f"asks {one.prompt!r}, expected the question of {original.id}, {original.prompt!r}."
    if not one.image_id or one.image_id == original.image_id:
        return f"needs a picture of its own, other than that of {original.id}."
    return ""


def _completed(one: Sample, original: Sample) -> Sample:
    return replace(one, answers=one.answers or original.answers, group=one.group or original.group)
