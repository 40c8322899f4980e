"""Is an answer right?"""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm_deploy.metrics.normalize import normalize, yes_or_no

RIGHT_FROM = 0.5
"""An answer counts as right, for flips, from this accuracy on: with ten references that takes two
annotators (0.6), since one gives 0.3."""

VQA_REFERENCES = 10


def accuracy(text: str, references: Sequence[str]) -> float:
    """How right `text` is, in [0, 1].

    Ten or more references: `vqa_accuracy`. Fewer: 1 when the normalised text equals a normalised
    reference, else 0; when all references are yes or no, the first whole word yes or no is compared.
    """
    if len(references) >= VQA_REFERENCES:
        return vqa_accuracy(text, references)
    accepted = {normalize(reference) for reference in references}
    if accepted <= {"yes", "no"}:
        return float(yes_or_no(text) in accepted)
    return float(normalize(text) in accepted)


def vqa_accuracy(text: str, references: Sequence[str]) -> float:
    """VQAv2 accuracy: mean of min(1, matches / 3) over the subsets that leave one reference out."""
    said = normalize(text)
    matches = [normalize(reference) == said for reference in references]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / len(matches)
