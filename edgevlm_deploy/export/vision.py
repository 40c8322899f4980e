"""Vision encoder and projector of a VLM as one torch module, whatever the family.

    pixel_values float32 [tiles, 3, S, S] → image_features float32 [tiles, tokens per tile, D]

As in `components`, the whole model is the only child.
"""

from __future__ import annotations

from typing import Any

import torch
from edgevlm_runner.contract import NativeSpec, Pixels

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export.native import NativeVisionEncoder


def vision_encoder(source: Any, pixels: Pixels | None = None) -> torch.nn.Module:
    """The module for the family of `source`. Raises ExportError for one that has none.

    pixels: how pictures are prepared, where the family leaves them their own resolution.
    """
    if isinstance(pixels, NativeSpec):
        return NativeVisionEncoder(source, pixels)
    family = source.config.model_type
    if family not in ENCODERS:
        raise ExportError(f"No vision encoder of the family {family!r} can be exported.")
    return ENCODERS[family](source)


class _ShuffledTiles(torch.nn.Module):  # type: ignore[misc]
    """Idefics3 and SmolVLM: SigLIP, then a connector that folds neighbouring patches into one token.

    Tiles are always full, so the patch mask is all true and the position ids are constants.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source
        self.register_buffer("position_ids", _position_ids(source.model.vision_model), persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        vision = self.source.model.vision_model
        patches = vision.embeddings.patch_embedding(pixel_values)  # [tiles, D, S / patch, S / patch]
        hidden = patches.flatten(2).transpose(1, 2)  # [tiles, patches, D]
        hidden = hidden + vision.embeddings.position_embedding(self.position_ids)
        hidden = vision.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        return self.source.model.connector(vision.post_layernorm(hidden))


def _position_ids(vision_model: Any) -> torch.Tensor:
    """int64 [1, patches]: what the source computes for a full tile, seen at its position embedding.

    It divides and compares floats to get them, so they are observed instead of derived.
    """
    embeddings = vision_model.embeddings
    seen: list[torch.Tensor] = []
    hook = embeddings.position_embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    side = embeddings.num_patches_per_side
    tile = (1, 3, embeddings.image_size, embeddings.image_size)
    try:
        with torch.no_grad():
            embeddings(
                pixel_values=torch.zeros(tile, dtype=embeddings.patch_embedding.weight.dtype),
                patch_attention_mask=torch.ones(1, side, side, dtype=torch.bool),
            )
    finally:
        hook.remove()
    return seen[0].reshape(1, -1)


class _Tower(torch.nn.Module):  # type: ignore[misc]
    """LLaVA: CLIP or SigLIP up to the chosen layer, without its first place if so chosen, then the projector.

    PaliGemma takes the output of the last layer, normed.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        model, config = self.source.model, self.source.config
        tower = model.vision_tower
        patches = tower.embeddings.patch_embedding(pixel_values)  # [tiles, D, S / patch, S / patch]
        hidden = patches.flatten(2).transpose(1, 2)  # [tiles, patches, D]
        positions = tower.embeddings.position_embedding.weight
        if hasattr(tower.embeddings, "class_embedding"):
            first = tower.embeddings.class_embedding.expand(hidden.shape[0], 1, -1)
            hidden = tower.pre_layrnorm(torch.cat([first, hidden], dim=1) + positions)
        else:
            hidden = hidden + positions
        layers = tower.encoder.layers
        chosen = getattr(config, "vision_feature_layer", None)
        for layer in layers if chosen is None else layers[: chosen % (len(layers) + 1)]:
            hidden = layer(hidden, attention_mask=None)
        if chosen is None:
            hidden = tower.post_layernorm(hidden)
        elif config.vision_feature_select_strategy == "default":
            hidden = hidden[:, 1:]
        return model.multi_modal_projector(hidden)


class _TowerWithNewline(_Tower):
    """LLaVA-NeXT and LLaVA-OneVision: behind each tile the token that ends a row of a picture."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = super().forward(pixel_values)
        newline = self.source.model.image_newline.expand(features.shape[0], 1, -1)
        return torch.cat([features, newline], dim=1)


ENCODERS: dict[str, type[torch.nn.Module]] = {
    "idefics3": _ShuffledTiles,
    "smolvlm": _ShuffledTiles,
    "llava": _Tower,
    "llava_next": _TowerWithNewline,
    "llava_onevision": _TowerWithNewline,
    "paligemma": _Tower,
}
"""`model_type` in config.json → its vision encoder."""
