"""What the families Qwen2-VL, Qwen2.5-VL and Qwen3-VL have in common: pictures at their own resolution, a
vision transformer with rotary positions in two dimensions, cells of merged patches as image tokens, and a
decoder with M-RoPE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from edgevlm_runner import native
from edgevlm_runner.contract import NativeSpec, PromptSpec

from edgevlm_deploy.errors import CheckpointError
from edgevlm_deploy.recipe import Component, Recipe
from edgevlm_deploy.source import loading
from edgevlm_deploy.source.checkpoint import Checkpoint
from edgevlm_deploy.source.header import StoredTensor, stored_dtype
from edgevlm_deploy.source.model import Architecture, SourceModel
from edgevlm_deploy.source.numbers import matrices, number, section, shape
from edgevlm_deploy.source.specification import chat_prompt, check_image_processor_type, numbers_of, three

IMAGE_PROCESSORS = ("Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor")
"""One class under two names; Qwen3-VL uses it too."""
TEXT = "model.language_model"
VISION = "model.visual"
PREFIXES = {
    Component.VISION_ENCODER.value: f"{VISION}.blocks",
    Component.PROJECTOR.value: f"{VISION}.merger",
    Component.EMBEDDING.value: f"{TEXT}.embed_tokens",
    Component.DECODER.value: f"{TEXT}.layers",
    Component.HEAD.value: "lm_head",
}
DEEPSTACK = f"{VISION}.deepstack_merger_list"
"""More projectors, in Qwen3-VL; each component has one prefix of its own beside them."""
TABLE = f"{VISION}.pos_embed.weight"
EMBEDDING = f"{TEXT}.embed_tokens.weight"
HEAD = "lm_head.weight"
PATCHES = f"{VISION}.patch_embed.proj.weight"
QUERIES = f"{TEXT}.layers.0.self_attn.q_proj.weight"
KEYS = f"{TEXT}.layers.0.self_attn.k_proj.weight"

# Defaults of transformers' configurations: `save_pretrained` leaves out what equals them.
DEFAULT_IMAGE_TOKEN_ID = 151655
DEFAULT_MAX_CONTEXT = 32768
DEFAULT_ROPE_THETA = 1000000.0
SAMPLE_SIZES = ((61, 95), (130, 40))
"""Height and width of pictures that prove the preprocessing, in pixels."""


@dataclass(frozen=True)
class QwenVl:
    """One of the families; see `edgevlm_deploy.source.Generative`."""

    model_type: str
    class_name: str
    projection: str
    """The linear layer of the merger that sees whole cells, below `VISION`."""
    default_heads: int
    default_window: int = 0
    """Side of the attention windows in pixels; 0 for families without."""

    def describe(self, checkpoint: Checkpoint) -> SourceModel:
        """The model's components and numbers from its configuration and its tensors' shapes.

        Raises CheckpointError when tensors are missing or disagree with the configuration.
        """
        tensors = {module_name(name): tensor for name, tensor in checkpoint.tensors.items()}
        known = Checkpoint(**{**vars(checkpoint), "tensors": tensors})
        tied = HEAD not in tensors
        if tied and not _is_tied(checkpoint):
            raise CheckpointError(f"{checkpoint.path}: has no {HEAD}, and its config does not tie the head.")
        shapes = matrices(tensors, (TABLE,))
        if tied and EMBEDDING in tensors:
            shapes["lm_head"] = shapes[EMBEDDING.removesuffix(".weight")]
        return SourceModel(
            path=checkpoint.path,
            name=checkpoint.name,
            revision=checkpoint.revision,
            digest=checkpoint.digest,
            family=self.model_type,
            dtype=stored_dtype(tensors),
            weight_files=tuple(sorted({tensor.file for tensor in tensors.values()})),
            architecture=self._architecture(known),
            prefixes=PREFIXES,
            modules={
                component: tuple(name for name in shapes if f"{name}.".startswith(tuple(prefixes)))
                for component, prefixes in _all_prefixes().items()
            },
            shapes=shapes,
            parameters=sum(tensor.values for tensor in tensors.values()),
            tied_head=tied,
        )

    def _architecture(self, checkpoint: Checkpoint) -> Architecture:
        """Shapes where they tell, the configuration where they do not."""
        text, vision = text_section(checkpoint), section(checkpoint, "vision_config")
        if text.get("use_sliding_window"):
            raise CheckpointError(
                f"{checkpoint.path}: use_sliding_window is on; decoders that forget are not supported."
            )
        vocab_size, hidden_size = shape(checkpoint, EMBEDDING, 2)
        heads = number(checkpoint, text, "num_attention_heads", self.default_heads)
        head_dim, odd = divmod(shape(checkpoint, QUERIES, 2)[0], heads)
        key_rows = shape(checkpoint, KEYS, 2)[0]
        vision_size, _, frames, patch_size, _ = shape(checkpoint, PATCHES, 5)
        merged, rest = divmod(shape(checkpoint, f"{VISION}.{self.projection}.weight", 2)[1], vision_size)
        merge_size = math.isqrt(merged)
        window = number(checkpoint, vision, "window_size", self.default_window) if self.default_window else 0
        stated = number(checkpoint, vision, "spatial_merge_size", 2)
        sections = _sections(text)
        cell = patch_size * merge_size
        if odd or rest or merge_size != stated or key_rows % head_dim or 2 * sum(sections) != head_dim:
            raise CheckpointError(
                f"{checkpoint.path}: config and weights disagree: {heads} heads, q_proj of "
                f"{heads * head_dim + odd} rows, k_proj of {key_rows}, mrope_section {list(sections)}, "
                f"spatial_merge_size {stated}, {merged} patches of width {vision_size} in a cell. "
                "They are of different models."
            )
        if window % max(cell, 1):
            raise CheckpointError(
                f"{checkpoint.path}: windows of {window} pixels do not hold whole cells of {cell}."
            )
        return Architecture(
            layers=_count(checkpoint.tensors, PREFIXES[Component.DECODER.value]),
            kv_heads=key_rows // head_dim,
            head_dim=head_dim,
            hidden_size=hidden_size,
            vocab_size=vocab_size,
            max_context=number(checkpoint, text, "max_position_embeddings", DEFAULT_MAX_CONTEXT),
            rope_theta=_rope_theta(checkpoint, text),
            image_token_id=number(checkpoint, checkpoint.config, "image_token_id", DEFAULT_IMAGE_TOKEN_ID),
            image_size=0,
            patch_size=patch_size,
            tokens_per_tile=0,
            merge_size=merge_size,
            frames=frames,
            window_size=window,
            table_side=math.isqrt(shape(checkpoint, TABLE, 2)[0]) if TABLE in checkpoint.tensors else 0,
            deepstack=_count(checkpoint.tensors, DEEPSTACK),
        )

    def load(self, source: SourceModel) -> Any:
        """The transformers model with the checkpoint's weights as float32, on the CPU, in eval mode.

        Raises CheckpointError when transformers leaves out, adds or changes a single weight.
        """
        model = loading.load(source, self.class_name, "sdpa")
        self._check_architecture(model.config, source)
        loading.check_weights(model, source, {HEAD} if source.tied_head else set(), module_name)
        head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        if source.tied_head and head is not embedding:
            raise CheckpointError(f"{source.path}: transformers did not tie the head to the embedding.")
        return model

    def _check_architecture(self, config: Any, source: SourceModel) -> None:
        """transformers reads old configurations through conversions; see that the numbers survived."""
        text, vision = config.text_config, config.vision_config
        theirs = Architecture(
            layers=text.num_hidden_layers,
            kv_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            hidden_size=text.hidden_size,
            vocab_size=text.vocab_size,
            max_context=text.max_position_embeddings,
            rope_theta=text.rope_parameters["rope_theta"],
            image_token_id=config.image_token_id,
            image_size=0,
            patch_size=vision.patch_size,
            tokens_per_tile=0,
            merge_size=vision.spatial_merge_size,
            frames=vision.temporal_patch_size,
            window_size=getattr(vision, "window_size", 0),
            table_side=math.isqrt(getattr(vision, "num_position_embeddings", 0)),
            deepstack=len(getattr(vision, "deepstack_visual_indexes", ())),
        )
        loading.check_architecture(source, theirs)

    def image_spec(self, source: SourceModel, recipe: Recipe) -> NativeSpec:
        """The image processor's numbers, proved on noise against transformers' own pixels."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        check_image_processor_type(source, IMAGE_PROCESSORS)
        try:
            processor = Qwen2VLImageProcessorPil.from_pretrained(source.path, local_files_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{source.path}: its image processor cannot be loaded ({error})."
            ) from error
        numbers = numbers_of(source)
        made_for = (numbers.patch_size, numbers.merge_size, numbers.frames)
        cut = (processor.patch_size, processor.merge_size, processor.temporal_patch_size)
        if cut != made_for:
            raise CheckpointError(
                f"{source.path}: the image processor has patch, merge and temporal patch size {cut}, the "
                f"vision encoder is made for {made_for}. They are of different models."
            )
        size, wanted = dict(processor.size), recipe.image
        mean, std = (three(value) for value in (processor.image_mean, processor.image_std))
        own = NativeSpec(
            patch_size=numbers.patch_size,
            merge_size=numbers.merge_size,
            frames=numbers.frames,
            window_size=numbers.window_size,
            min_pixels=int(size["shortest_edge"]),
            max_pixels=int(size["longest_edge"]),
            size=None,
            resample=int(processor.resample),
            rescale_factor=float(processor.rescale_factor),
            mean=mean,
            std=std,
            table_side=numbers.table_side,
        )
        _check_pixels(source, processor, own)
        most = min(own.max_pixels, wanted.max_pixels or own.max_pixels)
        limited = {"max_pixels": most, "min_pixels": min(own.min_pixels, most), "size": wanted.resolution}
        return NativeSpec(**{**asdict(own), **limited})

    def prompt_spec(self, source: SourceModel, tokenizer: Any) -> PromptSpec:
        """The chat template; how many image tokens a picture has is its own affair."""
        return chat_prompt(source, tokenizer)


def _all_prefixes() -> dict[str, list[str]]:
    """component → beginnings of its modules' names."""
    found = {component: [f"{prefix}."] for component, prefix in PREFIXES.items()}
    found[Component.PROJECTOR.value].append(f"{DEEPSTACK}.")
    return found


def module_name(stored: str) -> str:
    """The module's parameter behind a name in the file: older layouts have no `language_model`."""
    if stored.startswith("visual."):
        return f"model.{stored}"
    if stored.startswith("model.") and not stored.startswith((f"{TEXT}.", f"{VISION}.")):
        return f"{TEXT}.{stored.removeprefix('model.')}"
    return stored


def text_section(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The decoder's part of the configuration, which older ones have at the top."""
    return section(checkpoint, "text_config") or checkpoint.config


def _is_tied(checkpoint: Checkpoint) -> bool:
    places = (checkpoint.config, text_section(checkpoint))
    return any(bool(place.get("tie_word_embeddings")) for place in places)


def _sections(text: Mapping[str, Any]) -> tuple[int, ...]:
    """`mrope_section`: in `rope_scaling` of transformers 4's configurations, in `rope_parameters` since 5."""
    for key in ("rope_parameters", "rope_scaling"):
        found = text.get(key)
        sections = found.get("mrope_section") if isinstance(found, dict) else None
        if isinstance(sections, list) and all(type(one) is int for one in sections):
            return tuple(sections)
    return ()


def _rope_theta(checkpoint: Checkpoint, text: Mapping[str, Any]) -> float:
    parameters = text.get("rope_parameters")
    inside = parameters.get("rope_theta") if isinstance(parameters, dict) else None
    theta = text.get("rope_theta", DEFAULT_ROPE_THETA) if inside is None else inside
    if type(theta) not in (int, float):
        raise CheckpointError(
            f"{checkpoint.path}: rope_theta in config.json is {theta!r}, expected a number."
        )
    return float(theta)


def _count(tensors: Mapping[str, StoredTensor], prefix: str) -> int:
    prefix += "."
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def _check_pixels(source: SourceModel, processor: Any, spec: NativeSpec) -> None:
    """The device's pixels are transformers' pixels, bit for bit. Raises CheckpointError."""
    from PIL import Image

    noise = np.random.default_rng(0)
    for height, width in SAMPLE_SIZES:
        picture = Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8))
        theirs = processor(images=picture, return_tensors="np")
        ours = native.resized(picture, spec)
        rows, cols = native.cells(ours.shape[2:], spec)
        grid = [[1, rows * spec.merge_size, cols * spec.merge_size]]
        if theirs["image_grid_thw"].tolist() != grid or not np.array_equal(
            native.patches(ours, spec), theirs["pixel_values"]
        ):
            raise CheckpointError(
                f"{source.path}: the device prepares other pixels than its image processor does on a picture "
                f"of {width} × {height}. A setting of it is not supported; see preprocessor_config.json."
            )
