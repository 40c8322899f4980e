"""Modality-balanced quantisation (MBQ): AWQ's search, with picture and answer tokens weighed by gradients.

A picture gives many tokens that change an answer little one by one, an answer few that change it much; a
plain mean over tokens lets the picture decide. Here the loss of a block's output is

    (Σ over answer tokens |Δ| + ρ Σ over picture tokens |Δ|) / (number of both),

the words of the question count nothing, and ρ is how much more or less the answer's loss depends on a picture
token: r = mean|gradient| of picture tokens / mean|gradient| of answer tokens at the output of attention or
MLP, and ρ = max(r, median of r over the layers).

Li et al., "MBQ: Modality-Balanced Quantization for Large Vision-Language Models" (CVPR 2025), and the program
of its authors, whose gradients are averaged per sample and then over samples, as here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edgevlm_deploy.errors import DataError, QuantizationError
from edgevlm_deploy.quantize import awq, folding, layerwise
from edgevlm_deploy.quantize.awq import Loss, Quantized
from edgevlm_deploy.quantize.capture import LABELS, NO_LABEL, Batch, without_labels
from edgevlm_deploy.quantize.request import Request


def quantize(model: Any, request: Request, batches: Iterable[Batch]) -> Quantized:
    """Fold and quantise the requested linear layers of the decoder; `model` is changed.

    Raises DataError when no sample has both a picture and an answer, and what `awq.quantize` raises.
    """
    samples = layerwise.chosen(batches)
    pictures, answers = _masks(model, samples)
    layers = awq.places(model, request)
    blocks = [awq.judged(fold) for folds in layers.values() for fold in folds]
    ratios = gradient_ratios(model, blocks, samples)
    balance = balanced(ratios)

    def token_weights(block: str) -> Any:
        import torch

        return torch.cat(answers).float() + balance[block] * torch.cat(pictures).float()

    return awq.search(model, request, samples, Loss(power=1, token_weights=token_weights))


def balanced(ratios: Mapping[str, float]) -> dict[str, float]:
    """Block → ρ: its own r, but at least the median over the blocks of its kind in all layers."""
    kinds: dict[str, list[float]] = {}
    for block, ratio in ratios.items():
        kinds.setdefault(_kind(block), []).append(ratio)
    return {block: max(ratio, float(np.median(kinds[_kind(block)]))) for block, ratio in ratios.items()}


def gradient_ratios(model: Any, blocks: Sequence[str], samples: Sequence[Batch]) -> dict[str, float]:
    """Block → r at its output, over the samples that have a picture and an answer."""
    pictures, answers = _masks(model, samples)
    usable = [n for n, _ in enumerate(samples) if pictures[n].any() and answers[n].any()]
    if not usable:
        raise DataError(
            "mbq weighs picture tokens against answer tokens, and no calibration sample that it takes has a "
            "picture and an answer. Give such data, or use awq."
        )
    means: dict[str, list[tuple[float, float]]] = {block: [] for block in blocks}
    # One parameter in front of all blocks is enough for gradients to reach their outputs.
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    first = next(model.get_submodule(folding.layer_of(blocks[0])).parameters())
    first.requires_grad_(True)
    try:
        for number in usable:
            gradients = _gradients(model, blocks, samples[number])
            for block, gradient in gradients.items():
                per_token = gradient.abs().mean(dim=-1).flatten()
                pair = per_token[pictures[number]].mean(), per_token[answers[number]].mean()
                means[block].append((float(pair[0]), float(pair[1])))
    finally:
        first.requires_grad_(False)
        first.grad = None
    return {block: _ratio(block, np.mean(pairs, axis=0)) for block, pairs in means.items()}


def _ratio(block: str, means: Any) -> float:
    picture, answer = (float(value) for value in means)
    if not (np.isfinite(picture) and np.isfinite(answer) and answer > 0):
        raise QuantizationError(f"{block}: the answer's loss has no gradient there; use awq.")
    return picture / answer


def _gradients(model: Any, blocks: Sequence[str], sample: Batch) -> dict[str, Any]:
    """Block → gradient [1, T, D] of the mean cross-entropy of the answer's tokens at its output."""
    import torch

    found: dict[str, Any] = {}

    def watch(block: str) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            tensor.register_hook(lambda gradient: found.update({block: gradient}))

        return hook

    handles = [model.get_submodule(one).register_forward_hook(watch(one)) for one in dict.fromkeys(blocks)]
    try:
        with torch.enable_grad():
            logits = model(**without_labels(sample), use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits[0, :-1].float(), sample[LABELS][0, 1:], ignore_index=NO_LABEL
            )
            loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _masks(model: Any, samples: Sequence[Batch]) -> tuple[list[Any], list[Any]]:
    """(picture tokens, answer tokens), bool [T] per sample."""
    import torch

    image_token = getattr(model.config, "image_token_id", None)
    if image_token is None:
        raise QuantizationError("mbq: this model's configuration names no image_token_id; use awq.")
    pictures = [sample["input_ids"][0] == image_token for sample in samples]
    answers = [
        sample[LABELS][0] != NO_LABEL if LABELS in sample else torch.zeros_like(picture)
        for sample, picture in zip(samples, pictures, strict=True)
    ]
    return pictures, answers


def _kind(block: str) -> str:
    """`self_attn`, `mlp` or the like: the name of a block inside its layer."""
    return block.removeprefix(folding.layer_of(block))
