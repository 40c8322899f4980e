"""Multimodal rotary embeddings (M-RoPE): a token stands in time, height and width, and each frequency turns
by one of the three.

Cosines and sines come from a table by position, as those of other decoders do, so that no backend computes
angles in half precision. Which frequency listens to which of the three is observed, not read from a
configuration: Qwen2-VL takes them in sections, Qwen3-VL by turns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from edgevlm_runner.positions import ROWS
from numpy.typing import NDArray

from edgevlm_deploy.errors import ExportError

LookUp = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""position_ids int64 [3, B, T] → cosine and sine float32 [B, T, head dim / 2]"""


def rows(source: Any) -> int:
    """Numbers that say where a token stands in this model: 1, or 3."""
    return ROWS if "mrope_section" in source.config.get_text_config().rope_parameters else 1


def axes(source: Any) -> NDArray[np.int64]:
    """int64 [head dim / 2]: 0, 1 or 2 per frequency, the row of positions that turns it.

    Raises ExportError when a frequency is turned by none or by several.
    """
    text = source.get_decoder()
    one_each = torch.eye(ROWS, dtype=torch.int64)[:, None]  # [3, 1, T]: token i stands at 1 in row i alone
    with torch.no_grad():
        sine = text.rotary_emb(torch.zeros(1, ROWS, 1), position_ids=one_each)[1][0].numpy()
    turned = sine[:, : sine.shape[1] // 2] != 0  # [3, head dim / 2]
    if not np.all(turned.sum(0) == 1):
        raise ExportError("A frequency of the rotary embedding follows none or several of three positions.")
    found: NDArray[np.int64] = turned.argmax(0)
    return found


def look_up(source: Any, cosine: torch.Tensor, sine: torch.Tensor) -> LookUp:
    """cosine, sine: float32 [positions, head dim / 2], of a position that is the same in all three rows."""
    table = torch.cat([cosine, sine], dim=-1)
    which = torch.from_numpy(np.tile(axes(source), 2))  # [head dim]
    # [3, 1, 1, head dim]: 1 where a frequency listens to the row
    listens = torch.nn.functional.one_hot(which, ROWS).T.to(torch.float32)[:, None, None]

    def find(position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        by_row = torch.nn.functional.embedding(position_ids, table)  # [3, B, T, head dim]
        found_cosine, found_sine = (by_row * listens).sum(0).chunk(2, dim=-1)
        return found_cosine, found_sine

    return find


@contextmanager
def fused(source: Any, find: LookUp) -> Iterator[None]:
    """While it is traced: queries and keys are turned by ONNX Runtime's RotaryEmbedding.

    GroupQueryAttention, which does it by itself for others, takes positions to follow each other. Here every
    token of the step has a row of its own in a small table, made once per step.
    """
    text = source.get_decoder()
    modeling = sys.modules[type(text.layers[0].self_attn).__module__]

    def keep(hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return find(position_ids)

    def turn(query: Any, key: Any, cosine: torch.Tensor, sine: torch.Tensor, **_: Any) -> tuple[Any, Any]:
        batch, tokens = cosine.shape[:2]
        own_rows = torch.arange(batch * tokens).reshape(batch, tokens)
        tables = cosine.flatten(0, 1), sine.flatten(0, 1)  # [B · T, head dim / 2]

        def one(heads: torch.Tensor) -> torch.Tensor:
            return torch.onnx.ops.symbolic(
                "com.microsoft::RotaryEmbedding",
                (heads, own_rows, *tables),
                attrs={"interleaved": 0},
                dtype=heads.dtype,
                shape=heads.shape,
                version=1,
            )

        return one(query), one(key)

    with (
        mock.patch.object(text.rotary_emb, "forward", keep),
        mock.patch.object(modeling, "apply_rotary_pos_emb", turn),
    ):
        yield
