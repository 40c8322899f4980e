"""Keep calibration and evaluation apart: a picture belongs to one side only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from edgevlm_deploy.datasets.sample import SHOWN, Sample
from edgevlm_deploy.errors import DataError

Samples = tuple[Sample, ...]


def split(
    samples: Sequence[Sample], *, seed: int, share: float | None = None, count: int | None = None
) -> tuple[Samples, Samples]:
    """(calibration, evaluation), disjoint by picture, in the order of `samples`.

    Pictures are ordered by a hash of (seed, digest of the picture). `share` sends each picture whose hash
    falls into that share of the range to calibration, so that added pictures never move the others;
    `count` takes whole pictures until calibration has at least that many samples.

    Raises DataError when a side stays empty.
    """
    if (share is None) == (count is None):
        raise ValueError("give exactly one of share and count")
    places = {sample.cluster: place(seed, sample.cluster) for sample in samples}
    if share is not None:
        chosen = {cluster for cluster, where in places.items() if where < share}
    else:
        chosen = _first(samples, places, count or 0)
    calibration = tuple(sample for sample in samples if sample.cluster in chosen)
    evaluation = tuple(sample for sample in samples if sample.cluster not in chosen)
    if not calibration or not evaluation:
        raise DataError(
            f"{len(samples)} samples of {len(places)} pictures leave {len(calibration)} for calibration and "
            f"{len(evaluation)} for evaluation; both need some. Give more pictures or another share."
        )
    return calibration, evaluation


def check_disjoint(calibration: Sequence[Sample], evaluation: Sequence[Sample]) -> None:
    """Raises DataError naming the pictures that both sides use.

    Compared by the digest of the file: a picture that was encoded again counts as another one.
    """
    judged = {sample.cluster: sample for sample in evaluation}
    shared = {sample.cluster: sample for sample in calibration if sample.cluster in judged}
    if not shared:
        return
    shown = [
        f"  {one.image or repr(one.prompt)}: {one.id} for calibration, {judged[cluster].id} for evaluation"
        for cluster, one in list(shared.items())[:SHOWN]
    ]
    more = [f"  … and {len(shared) - SHOWN} more."] if len(shared) > SHOWN else []
    raise DataError(
        "\n".join(
            [
                f"{len(shared)} pictures are in the calibration and in the evaluation data; "
                "accuracy on them would flatter the artifact. Remove them from one side, or use one "
                "data set and let it be split.",
                *shown,
                *more,
            ]
        )
    )


def place(seed: int, key: str) -> float:
    """A uniform number in [0, 1) that depends on the seed and the key alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:7], "big") / 2**56


def _first(samples: Sequence[Sample], places: dict[str, float], count: int) -> set[str]:
    sizes: dict[str, int] = {}
    for sample in samples:
        sizes[sample.cluster] = sizes.get(sample.cluster, 0) + 1
    chosen: set[str] = set()
    taken = 0
    for cluster in sorted(places, key=lambda one: (places[one], one)):
        if taken >= count:
            break
        chosen.add(cluster)
        taken += sizes[cluster]
    return chosen
