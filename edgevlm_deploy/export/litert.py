"""A VLM as one .tflite file whose signatures share their weights. The only importer of litert_torch.

    encode_image   pixel_values [1, 3, S, S] → image_features [1, tokens per tile, D]
    (of M-RoPE, prefill_N and decode take position_ids int32 [3, 1, N] too)
    embed_N        token_ids int32 [1, N] → embeddings [1, N, D]; N is 1 or a prefill length
    prefill_N      embeddings [1, N, D], input_pos int32 [N], mask [1, 1, N, C], kv_cache_k_0, …
                   → the same kv_cache_*, each [1, kv heads, C, head dim], the N tokens written at input_pos
    decode         prefill of one token, with logits [1, 1, V], and where it is asked for hidden [1, 1, D],
                   the state that they are made of

The mask is added to the scores: 0 where a token is seen, −1e4 where not (−inf would give NaN). `prefill_N`
and `decode` have the longest cache; a shorter one of C tokens has `prefill_N_cache_C` and `decode_cache_C`,
which is how litert-torch's own exporter of language models names them.

A dual encoder has two signatures:

    encode_image   pixel_values [1, 3, S, S] → image_embeds [1, D]
    encode_text    token_ids int32 [1, T] → text_embeds [1, D]

Decoding starts from embeddings, as prefill does. The runner's `step` is then one kind of call, and LiteRT-LM
takes such a decoder next to an embedder; a decoder from tokens would need the embedding table twice.
Prefill has no logits: the last token of a prompt is decoded, so nobody pays for logits that nobody reads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from edgevlm_runner import abstain
from edgevlm_runner.contract import Pixels, TextSpec, sides
from edgevlm_runner.runtimes.litert_encoders import ENCODE_IMAGE, ENCODE_TEXT

from edgevlm_deploy import quiet
from edgevlm_deploy.errors import ExportError, StorageError
from edgevlm_deploy.export import mrope, onnx
from edgevlm_deploy.export.attention import PLAIN_ATTENTION, STATIC_CACHE_ATTENTION, StaticCache, attention
from edgevlm_deploy.export.components import Embedding, adding, check_rotary, deepstack, head_dim, layered
from edgevlm_deploy.export.encoders import PictureEncoder, TextEncoder
from edgevlm_deploy.export.vision import vision_encoder


@dataclass(frozen=True)
class StaticLengths:
    """What the graphs are made for, in tokens, ascending."""

    caches: tuple[int, ...]
    prefills: tuple[int, ...]

    def signatures(self) -> dict[str, tuple[int, int]]:
        """Name of every decoder signature → (new tokens N, cache length C). N = 1 is decoding."""
        found = {}
        for cache in reversed(self.caches):
            suffix = "" if cache == self.caches[-1] else f"_cache_{cache}"
            for tokens in self.prefills:
                if tokens <= cache:
                    found[f"prefill_{tokens}{suffix}"] = tokens, cache
            found[f"decode{suffix}"] = 1, cache
        return found


class _EncodeImage(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, source: Any, pixels: Pixels) -> None:
        super().__init__()
        self.encoder = vision_encoder(source, pixels)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"image_features": self.encoder(pixel_values)}


class _Embed(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, source: Any) -> None:
        super().__init__()
        self.embedding = Embedding(source)

    def forward(self, token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"embeddings": self.embedding(token_ids)}


class _Prefill(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source

    def forward(
        self, embeddings: torch.Tensor, input_pos: torch.Tensor, mask: torch.Tensor, **cache: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return self._run(embeddings, input_pos, mask, cache)[1]

    def _run(
        self,
        embeddings: torch.Tensor,
        input_pos: torch.Tensor,
        mask: torch.Tensor,
        cache: dict[str, torch.Tensor],
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        from litert_torch.generative.custom_ops.dynamic_update_slice import dynamic_update_slice

        def write(held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            zero = torch.zeros((), dtype=torch.int32)
            return dynamic_update_slice(held, new, [zero, zero, input_pos[0].clone(), zero])

        layers = range(self.source.config.text_config.num_hidden_layers)
        static = StaticCache(
            past=tuple((cache[f"kv_cache_k_{i}"], cache[f"kv_cache_v_{i}"]) for i in layers),
            write=write,
            mask=mask,
        )
        places = cache.get("position_ids", input_pos[None])
        hidden = self.source.get_decoder()(
            **layered(self.source, embeddings),
            position_ids=places,
            use_cache=False,
            static_cache=static,
        ).last_hidden_state
        present: dict[str, torch.Tensor] = {}
        for layer, (key, value) in sorted(static.present.items()):
            present |= {f"kv_cache_k_{layer}": key, f"kv_cache_v_{layer}": value}
        return hidden, present


class _Decode(_Prefill):
    def __init__(self, source: Any, gives_hidden: bool) -> None:
        super().__init__(source)
        self.gives_hidden = gives_hidden

    def forward(
        self, embeddings: torch.Tensor, input_pos: torch.Tensor, mask: torch.Tensor, **cache: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        hidden, present = self._run(embeddings, input_pos, mask, cache)
        given = {"hidden": hidden} if self.gives_hidden else {}
        return {"logits": self.source.lm_head(hidden), **given, **present}


def export(source: Any, lengths: StaticLengths, path: Path, pixels: Pixels, hidden: bool = False) -> None:
    """Write the float graphs of `source` (float32, in evaluation mode) to `path`.

    pixels: how pictures are prepared; those at their own resolution have one size.
    Raises MissingExtraError without litert-torch, ExportError when it refuses the model or delivers other
    signatures, StorageError when the disk does not take the file.
    """
    check_rotary(source)
    with library() as toolkit, torch.no_grad():
        converter = _signatures(toolkit, source, lengths, pixels, hidden)
        with (
            attention(source.get_encoder("image").config, PLAIN_ATTENTION),
            attention(source.get_decoder().config, STATIC_CACHE_ATTENTION),
            mock.patch.object(torch.nn.LayerNorm, "forward", layer_norm),
            adding(source),
            _by_rows(source, lengths.caches[-1]),
        ):
            made = converter.convert(strict_export=False)
        save(made, {"encode_image", *_embed_lengths(lengths), *lengths.signatures()}, path)


def export_encoders(source: Any, text: TextSpec, path: Path) -> None:
    """Write the float graphs of a dual encoder to `path`. Raises what `export` raises."""
    side = source.config.vision_config.image_size
    with library() as toolkit, torch.no_grad():
        converter = toolkit.signature(
            ENCODE_IMAGE,
            _Named(PictureEncoder(source), "pixel_values", "image_embeds").eval(),
            sample_kwargs={"pixel_values": torch.zeros(1, 3, side, side)},
        )
        converter.signature(
            ENCODE_TEXT,
            _Named(TextEncoder(source, text, with_mask=True), "token_ids", "text_embeds").eval(),
            sample_kwargs={"token_ids": torch.ones(1, text.length, dtype=torch.int32)},
        )
        with (
            attention(source.vision_model.config, PLAIN_ATTENTION),
            attention(source.text_model.config, PLAIN_ATTENTION),
            mock.patch.object(torch.nn.LayerNorm, "forward", layer_norm),
        ):
            made = converter.convert(strict_export=False)
        save(made, {ENCODE_IMAGE, ENCODE_TEXT}, path)


class _Named(torch.nn.Module):  # type: ignore[misc]
    """A module of one tensor, whose result has a name."""

    def __init__(self, module: Any, given: str, result: str) -> None:
        super().__init__()
        self.module, self._given, self._result = module, given, result

    def forward(self, **given: torch.Tensor) -> dict[str, torch.Tensor]:
        return {self._result: self.module(given[self._given])}


def save(made: Any, expected: set[str], path: Path) -> None:
    """Raises ExportError for other signatures than the expected ones, StorageError."""
    try:
        made.export(str(path))
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error}). Free space or choose another folder."
        ) from error
    from edgevlm_deploy.export import tflite

    found = set(tflite.load(path).signatures)
    if found != expected:
        raise ExportError(
            f"{path} has the signatures {sorted(found)}, expected {sorted(expected)}. "
            "Is this version of litert-torch supported?"
        )


class _Select(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        return {abstain.SCORE: self.layers(features)}


def export_selector(layers: Any, features: int, path: Path) -> None:
    """Write a Selector, `layers` from float32 [1, features] to [1, 1], with its one signature to `path`.

    Raises what `export` does.
    """
    with library() as toolkit, torch.no_grad():
        given = {abstain.FEATURES: torch.zeros(1, features)}
        made = toolkit.signature(abstain.SIGNATURE, _Select(layers).eval(), sample_kwargs=given).convert(
            strict_export=False
        )
        try:
            made.export(str(path))
        except OSError as error:
            raise StorageError(
                f"{path}: cannot be written ({error}). Free space or choose another folder."
            ) from error


def layer_norm(norm: torch.nn.LayerNorm, hidden: torch.Tensor) -> torch.Tensor:
    """The same norm, with its weight multiplied into the reciprocal deviation of each token.

    The converter folds a constant that is multiplied with the input of a biased linear layer into the
    layer's weights, which are then no longer those that were quantised. A constant that is added goes into
    the bias, which may.
    """
    centred = hidden.contiguous() - hidden.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + norm.eps) * norm.weight
    return centred * scale + norm.bias


@contextlib.contextmanager
def _by_rows(source: Any, positions: int) -> Iterator[None]:
    """While a model with M-RoPE is traced: cosines and sines come from a table. Norms are as `layer_norm` has
    them, for the layers behind them have biases.
    """
    text = source.get_decoder()
    if mrope.rows(source) == 1:
        yield
        return
    find = mrope.look_up(source, *map(torch.from_numpy, onnx.rotary_table(source, positions)))

    def look_up(hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cosine, sine = (torch.cat([half, half], dim=-1) for half in find(position_ids))
        return cosine, sine

    def norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.variance_epsilon) * self.weight
        return hidden * scale

    with (
        mock.patch.object(text.rotary_emb, "forward", look_up),
        mock.patch.object(type(text.norm), "forward", norm),
    ):
        yield


def _embed_lengths(lengths: StaticLengths) -> dict[str, int]:
    return {f"embed_{tokens}": tokens for tokens in (1, *lengths.prefills)}


def _signatures(toolkit: Any, source: Any, lengths: StaticLengths, pixels_of: Pixels, hidden: bool) -> Any:
    """A converter that knows what to convert."""
    text, rows = source.config.text_config, mrope.rows(source)
    pixels = torch.zeros(1, 3, *sides(pixels_of))
    converter = toolkit.signature(
        "encode_image", _EncodeImage(source, pixels_of).eval(), sample_kwargs={"pixel_values": pixels}
    )
    for name, tokens in _embed_lengths(lengths).items():
        ids = torch.ones(1, tokens, dtype=torch.int32)
        converter.signature(name, _Embed(source).eval(), sample_kwargs={"token_ids": ids})
    for name, (tokens, cache) in lengths.signatures().items():
        held = torch.zeros(1, text.num_key_value_heads, cache, head_dim(source))
        arguments = {
            "embeddings": torch.zeros(1, tokens, (1 + deepstack(source)) * text.hidden_size),
            "input_pos": torch.arange(tokens, dtype=torch.int32),
            "mask": torch.zeros(1, 1, tokens, cache),
        }
        if rows > 1:
            arguments["position_ids"] = torch.zeros(rows, 1, tokens, dtype=torch.int32)
        for layer in range(text.num_hidden_layers):
            arguments |= {f"kv_cache_k_{layer}": held.clone(), f"kv_cache_v_{layer}": held.clone()}
        module = _Decode(source, hidden) if tokens == 1 else _Prefill(source)
        converter.signature(name, module.eval(), sample_kwargs=arguments)
    return converter


@contextlib.contextmanager
def library() -> Iterator[Any]:
    """`litert_torch`; for its errors see `quiet.toolkit`."""
    with quiet.toolkit("litert-torch", "Compiling for LiteRT", "litert", ExportError):
        import litert_torch

        yield litert_torch
