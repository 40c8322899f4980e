"""A dual encoder's embeddings of some pictures and texts, as one file of the evidence.

Class scores tell which class is nearest; retrieval and the spectral analysis need the embeddings themselves.
"""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Callable, List, Sequence, Tuple

import numpy as np
from tokenizers import Tokenizer

from edgevlm_runner.contract import CLEAN, DualEncoderSpec, Item
from edgevlm_runner.errors import BundleError
from edgevlm_runner.zero_shot import Encode, embed_classes, embed_texts


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Embeddings, float32, D = `DualEncoderSpec.projection_size`. Their lengths are the encoders' own, but
    for the classes'."""

    images: np.ndarray
    """[N, D], of the pictures of `watched`."""
    captions: np.ndarray
    """[M, D], of `captions`; M may be 0."""
    classes: np.ndarray
    """[C, D], each of length 1."""


def watched(items: Sequence[Item], spec: DualEncoderSpec) -> List[Item]:
    """The items whose embeddings are kept: the first clean ones."""
    return [item for item in items if item.condition == CLEAN][: spec.feature_items]


def captions(items: Sequence[Item]) -> Tuple[str, ...]:
    """Every caption once, in the order of the items."""
    return tuple(dict.fromkeys(item.caption for item in items if item.caption))


def gather(
    kept: Sequence[Item],
    encode_item: Callable[[Item], np.ndarray],
    encode_text: Encode,
    spec: DualEncoderSpec,
    tokenizer: Tokenizer,
) -> Features:
    """`encode_item` gives float32 [D] for an item's picture. Raises PromptError for a caption that the text
    encoder cannot read whole."""
    return Features(
        images=np.stack([encode_item(item) for item in kept]).astype(np.float32),
        captions=embed_texts(encode_text, captions(kept), spec.text, tokenizer, spec.projection_size),
        classes=embed_classes(encode_text, spec.text.classes, spec.text, tokenizer),
    )


def write(path: Path, features: Features) -> None:
    """The same numbers give the same bytes."""
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "wb") as out:
        np.savez(out, **{one.name: getattr(features, one.name) for one in dataclasses.fields(features)})
    temporary.replace(path)


def read(path: Path, items: Sequence[Item], spec: DualEncoderSpec) -> Features:
    """What `write` wrote for these items. Raises BundleError when it is something else."""
    kept, width = watched(items, spec), spec.projection_size
    rows = {"images": len(kept), "captions": len(captions(kept)), "classes": len(spec.text.classes)}
    found = {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            for name, count in rows.items():
                found[name] = stored[name]
                if found[name].shape != (count, width) or found[name].dtype != np.float32:
                    raise ValueError(f"{name} are {found[name].dtype} {found[name].shape}")
                if not np.isfinite(found[name]).all():
                    raise ValueError(f"{name} hold NaN or infinity; an encoder is broken")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        expected = ", ".join(f"{name} {count} × {width}" for name, count in rows.items())
        raise BundleError(
            f"{path}: not the embeddings of this bundle's items ({error}); expected {expected}."
        ) from error
    return Features(**found)
