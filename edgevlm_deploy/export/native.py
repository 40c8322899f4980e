"""The vision encoder of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: patches of one picture at its own resolution.

    pixel_values float32 [1, 3, H, W] and `native.layout` of that size → image_features float32 [1, cells, D],
    in Qwen3-VL [1, cells, (1 + layers) · D] with what is added behind the first layers of the decoder

Of a fixed size the layout is a constant, and the picture is the only input. transformers is given patches in
groups and the sizes of several pictures; that its answer is the same is verified for every compilation.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from edgevlm_runner.contract import NativeSpec
from edgevlm_runner.native import layout
from numpy.typing import NDArray

from edgevlm_deploy.export.attention import MULTI_HEAD_ATTENTION

UNSEEN = -1e4
"""Added to the scores of patches that are not there; −inf would give NaN in a window's empty rows."""


class NativeVisionEncoder(torch.nn.Module):  # type: ignore[misc]
    """Layers as transformers has them, patches in the same order: quantised inputs are compared by place."""

    def __init__(self, source: Any, spec: NativeSpec) -> None:
        super().__init__()
        self.source = source
        self.names: tuple[str, ...] = ()
        self.whole_windows = False
        if spec.size is None:
            self.names = tuple(layout((spec.cell, spec.cell), spec))
            return
        constants = layout(spec.size, spec)
        self.whole_windows = bool(np.all(constants.get("window_mask", 1)))
        places = torch.from_numpy(constants["patch_positions"])
        with torch.no_grad():
            turn = source.model.visual.rotary_pos_emb(torch.zeros(1), places)
        made = dict(zip(("cosine", "sine"), turn, strict=True))  # [P, head dim]
        # Indices in 32 bits, which every runtime gathers by.
        made |= {name: _narrow(array) for name, array in constants.items()}
        for name, tensor in made.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, pixel_values: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        visual = self.source.model.visual
        at: Mapping[str, torch.Tensor] = dict(zip(self.names, given, strict=True)) or dict(
            self.named_buffers()
        )
        hidden = _patches(visual, pixel_values)  # [1, C, merge², D]
        if "cell_order" in at:
            hidden = hidden.index_select(1, at["cell_order"])
        hidden = hidden.flatten(1, 2)  # [1, P, D]
        if "table_rows" in at:
            around = visual.pos_embed(at["table_rows"])  # [P, 4, D]
            table = (around.to(torch.float32) * at["table_weights"][:, :, None]).sum(1)
            hidden = hidden + table.to(hidden.dtype)
        turn = (at["cosine"], at["sine"]) if "cosine" in at else None  # [P, head dim]
        turn = turn or visual.rotary_pos_emb(hidden, at["patch_positions"])
        full = getattr(visual, "fullatt_block_indexes", range(len(visual.blocks)))
        deep, stacked = list(getattr(visual, "deepstack_visual_indexes", ())), []
        for index, block in enumerate(visual.blocks):
            attended = self._attend(block.attn, block.norm1(hidden), turn, None if index in full else at)
            hidden = hidden + block.attn.proj(attended)
            hidden = hidden + block.mlp(block.norm2(hidden))
            if index in deep:
                stacked.append(_merged(visual.deepstack_merger_list[deep.index(index)], hidden))
        features = torch.cat([_merged(visual.merger, hidden), *stacked], dim=-1)
        return features.index_select(1, at["cell_places"]) if "cell_places" in at else features

    def _attend(
        self,
        attention: Any,
        hidden: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        windows: Mapping[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        """[1, P, D] → [1, P, D]: every patch sees all others, or those of its window."""
        patches, heads = hidden.shape[1], attention.num_heads
        split = (
            attention.qkv(hidden).reshape(patches, 3, heads, -1).permute(1, 0, 2, 3)
        )  # [3, P, heads, size]
        modeling = sys.modules[type(attention).__module__]
        query, key = modeling.apply_rotary_pos_emb_vision(split[0], split[1], *turn)
        parts, mask = [query, key, split[2]], None
        if windows is None:
            parts = [one[None] for one in parts]
        else:
            parts = [self._windowed(one, windows) for one in parts]
            mask = None if self.whole_windows else windows["window_mask"]
        mixed = _attention(attention, [one.transpose(1, 2) for one in parts], mask)  # [W, S, heads, size]
        mixed = mixed.reshape(-1, hidden.shape[2])
        if windows is not None and not self.whole_windows:
            mixed = mixed.index_select(0, windows["window_places"])
        return mixed[None]

    def _windowed(self, patches: torch.Tensor, at: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[P, heads, size] → [W, S, heads, size]"""
        if not self.whole_windows:
            patches = patches.index_select(0, at["windows"].flatten())
        return patches.reshape(*at["windows"].shape, *patches.shape[1:])


def _narrow(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int32) if array.dtype == np.int64 else array)


def _patches(visual: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """float32 [1, 3, H, W] → [1, C, merge², D]: embedded patches, those of one cell together."""
    embed, merge = visual.patch_embed, visual.spatial_merge_size
    weight = embed.proj.weight  # [D, 3, frames, patch, patch]
    frames = weight.shape[2]
    # A picture is a film of equal frames; each has its own weights.
    film = pixel_values[:, :, None].expand(-1, -1, frames, -1, -1).flatten(1, 2)
    patch = weight.shape[-1]
    made = torch.nn.functional.conv2d(film, weight.flatten(1, 2), embed.proj.bias, stride=patch)
    cell = patch * merge
    rows, cols = pixel_values.shape[2] // cell, pixel_values.shape[3] // cell
    made = made.reshape(1, weight.shape[0], rows, merge, cols, merge)
    return made.permute(0, 2, 4, 3, 5, 1).reshape(1, rows * cols, merge * merge, weight.shape[0])


def _merged(merger: Any, hidden: torch.Tensor) -> torch.Tensor:
    """[1, P, D] → [1, C, text D]; without the first dimension it would be no matrix product."""
    cells = (1, -1, merger.hidden_size)
    if hasattr(merger, "mlp"):
        return merger.mlp(merger.ln_q(hidden).reshape(cells))
    normed = merger.norm(hidden.reshape(cells) if merger.use_postshuffle_norm else hidden)
    return merger.linear_fc2(merger.act_fn(merger.linear_fc1(normed.reshape(cells))))


def _attention(attention: Any, parts: list[torch.Tensor], mask: torch.Tensor | None) -> torch.Tensor:
    """query, key and value [W, heads, S, size], mask [W, S] of what is there → [W, S, heads, size]"""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = attention.config._attn_implementation
    if mask is not None and name != MULTI_HEAD_ATTENTION:
        mask = ((1 - mask.to(parts[0].dtype)) * UNSEEN)[:, None, None]
    eager = sys.modules[type(attention).__module__].eager_attention_forward
    function = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    mixed: torch.Tensor = function(attention, *parts, mask, scaling=attention.scaling, is_causal=False)[0]
    return mixed
