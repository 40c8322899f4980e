"""What is known about a source model before a single weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgevlm_runner.contract import DUAL_ENCODER, ENCODER_DECODER, GENERATIVE


@dataclass(frozen=True)
class Architecture:
    """The numbers that graphs, KV cache and prompts are built from."""

    layers: int
    """Decoder layers."""
    kv_heads: int
    head_dim: int
    hidden_size: int
    """Width of the decoder and of its embeddings."""
    vocab_size: int
    max_context: int
    """Positions that the decoder was made for, in tokens."""
    rope_theta: float
    image_token_id: int
    image_size: int
    """Side of one tile in pixels; 0 for families that keep a picture's own resolution."""
    patch_size: int
    tokens_per_tile: int
    """0 where they depend on the picture."""
    shuffle: int = 1
    """shuffle × shuffle neighbouring patches are folded into one image token."""
    prefix: bool = False
    """Whether all tokens of the prompt see each other, later ones too."""
    merge_size: int = 0
    """Of families that keep a picture's own resolution: merge × merge patches, a cell, become one token."""
    frames: int = 0
    """Of a film, that one patch spans; likewise."""
    window_size: int = 0
    """Side in pixels of the vision encoder's attention windows; 0 without."""
    table_side: int = 0
    """Side of the vision encoder's learned table of positions; 0 without."""
    deepstack: int = 0
    """First decoder layers behind which image tokens get features of their own."""

    @property
    def cell(self) -> int:
        """Side in pixels of what becomes one image token, 0 for families that cut pictures into tiles."""
        return self.patch_size * self.merge_size


@dataclass(frozen=True)
class DualArchitecture:
    """The numbers of a dual encoder that graphs and preprocessing are built from."""

    image_size: int
    """Side of the square picture in pixels."""
    patch_size: int
    vision_layers: int
    text_layers: int
    max_text: int
    """Tokens that the text encoder has positions for."""
    vocab_size: int
    projection_size: int
    """Width of the space that both encoders map into."""


@dataclass(frozen=True)
class EncoderDecoderArchitecture:
    """The numbers of an encoder–decoder that graphs and preprocessing are built from."""

    image_size: int
    """Side of the square picture in pixels."""
    patch_size: int
    vision_layers: int
    text_layers: int
    """Of the question encoder."""
    layers: int
    """Of the answer decoder."""
    heads: int
    """Of the text encoder and of the decoder."""
    hidden_size: int
    """Width of all three."""
    max_text: int
    """Tokens that text encoder and decoder have positions for."""
    vocab_size: int
    start_token_id: int
    """What an answer begins with."""
    end_token_id: int
    pad_token_id: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    @property
    def image_tokens(self) -> int:
        """States that the vision encoder gives for a picture: its patches and one for the class."""
        return int((self.image_size // self.patch_size) ** 2 + 1)


AnyArchitecture = Architecture | DualArchitecture | EncoderDecoderArchitecture


@dataclass(frozen=True)
class SourceModel:
    """A checkpoint that was checked but not loaded; `source.load` makes the torch model.

    modules  component → names of its weight matrices (linear layers, or the embedding)
    shapes   module name → (rows N, columns K) of its weight
    """

    path: Path
    name: str
    """The hub id, or the folder's name: never a path of this machine."""
    revision: str
    """Commit of a hub checkpoint, "" for a folder."""
    digest: str
    """SHA-256 over names and contents of config, weights and tokenizer files."""
    family: str
    dtype: str
    """What the weights are stored as: "fp16", "bf16" or "fp32"."""
    weight_files: tuple[str, ...]
    """Names of the safetensors files in `path`."""
    architecture: AnyArchitecture
    prefixes: Mapping[str, str]
    """component → name of the torch module that holds it, where it is one."""
    modules: Mapping[str, tuple[str, ...]]
    shapes: Mapping[str, tuple[int, int]]
    parameters: int
    tied_head: bool
    """Whether the head shares the embedding's weight."""

    @property
    def kind(self) -> str:
        """As the `kind` of its specification in `edgevlm_runner.contract`."""
        if isinstance(self.architecture, DualArchitecture):
            return DUAL_ENCODER
        return GENERATIVE if isinstance(self.architecture, Architecture) else ENCODER_DECODER

    @property
    def tokenizer(self) -> Path:
        """tokenizer.json, which the device reads as it is."""
        return self.path / "tokenizer.json"
