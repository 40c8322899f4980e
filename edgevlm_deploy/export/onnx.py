"""Float ONNX graphs of the three components, traced from transformers' own modules."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from edgevlm_runner.contract import NativeSpec, Pixels
from edgevlm_runner.native import layout, signature
from numpy.typing import NDArray

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import mrope
from edgevlm_deploy.export.attention import (
    GROUP_QUERY_ATTENTION,
    MULTI_HEAD_ATTENTION,
    PREFIX_ATTENTION,
    attention,
)
from edgevlm_deploy.export.components import (
    Decoder,
    Embedding,
    PruningDecoder,
    adding,
    check_rotary,
    deepstack,
    head_dim,
    sees_whole_prompt,
)
from edgevlm_deploy.export.native import NativeVisionEncoder
from edgevlm_deploy.export.vision import vision_encoder

OPSET = 21
IR_VERSION = 10
"""Opset and IR version that ONNX Runtime 1.23 reads, the last one with a wheel for JetPack 6's Python."""


def cache_names(layers: int) -> tuple[list[str], list[str]]:
    """Names of the decoder's cache inputs and outputs, in the order of the graph."""
    pairs = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return [f"past_key_values.{pair}" for pair in pairs], [f"present.{pair}" for pair in pairs]


def export_vision_encoder(source: Any, pixels: Pixels | None = None) -> ir.Model:
    """pixel_values float32 [tiles, 3, S, S] → image_features float32 [tiles, tokens per tile, D].

    pixels: how pictures are prepared; with a NativeSpec pixel_values is [1, 3, H, W], and where it fixes no
    size there are the further inputs of `native.signature`.
    """
    if isinstance(pixels, NativeSpec):
        return _export_native(source, pixels)
    side = source.config.vision_config.image_size
    with attention(source.get_encoder("image").config, MULTI_HEAD_ATTENTION):
        return trace(
            vision_encoder(source),
            (torch.zeros(2, 3, side, side),),
            ({0: "tiles"},),
            ["pixel_values"],
            ["image_features"],
        )


def _export_native(source: Any, spec: NativeSpec) -> ir.Model:
    encoder = NativeVisionEncoder(source, spec)
    rows, cols = torch.export.Dim("rows"), torch.export.Dim("columns")
    # Any size that fills windows and leaves some half empty: nothing of it stays in the graph.
    size = spec.size or (2 * spec.cell + spec.window_size, 3 * spec.cell + spec.window_size)
    names = () if spec.size else tuple(layout(size, spec))
    given = tuple(torch.from_numpy(layout(size, spec)[name]) for name in names)
    axes: tuple[Any, ...] = ({} if spec.size else {2: spec.cell * rows, 3: spec.cell * cols},)
    if names:
        axes = (*axes, tuple({0: torch.export.Dim.DYNAMIC} for _ in names))
    with attention(source.get_encoder("image").config, MULTI_HEAD_ATTENTION):
        model = trace(
            encoder, (torch.zeros(1, 3, *size), *given), axes, ["pixel_values", *names], ["image_features"]
        )
    for value in model.graph.inputs if names else ():
        value.shape = ir.Shape(signature(spec)[value.name])
    return model


def export_embedding(source: Any) -> ir.Model:
    """input_ids int64 [batch, tokens] → inputs_embeds float32 [batch, tokens, D]."""
    ids = torch.zeros(2, 3, dtype=torch.int64)
    axes = ({0: "batch", 1: "tokens"},)
    return trace(Embedding(source), (ids,), axes, ["input_ids"], ["inputs_embeds"])


def export_decoder(
    source: Any, pruned_layer: int | None = None, hidden: bool = False, max_context: int = 0
) -> ir.Model:
    """inputs_embeds, attention_mask, position_ids, past → logits float32 [batch, V] of the last token,
    with `hidden` its hidden state float32 [batch, D], and the present cache.

    attention_mask int64 [batch, total] counts the tokens of past and input. Key and value are
    float32 [batch, kv heads, past, head dim]; a longer buffer may be given, the mask says what is in it.
    pruned_layer: the first one without the dropped image tokens; see `PruningDecoder`.
    max_context: positions that a model with M-RoPE looks up; its position_ids are [3, batch, tokens].
    """
    text = source.config.text_config
    rows = mrope.rows(source)
    past_tokens, tokens = 5, 3
    shape = (2, text.num_key_value_heads, past_tokens, head_dim(source))
    past = [torch.zeros(shape) for _ in range(2 * text.num_hidden_layers)]
    past_names, present_names = cache_names(text.num_hidden_layers)
    positions = torch.arange(past_tokens, past_tokens + tokens).repeat(2, 1)
    given: dict[str, tuple[Any, str]] = {
        "inputs_embeds": (torch.zeros(2, tokens, (1 + deepstack(source)) * text.hidden_size), "tokens"),
        "attention_mask": (torch.ones(2, past_tokens + tokens, dtype=torch.int64), "total"),
        "position_ids": (positions if rows == 1 else positions.repeat(rows, 1, 1), "tokens"),
    }
    module = Decoder(source, hidden)
    if pruned_layer is not None:
        module = PruningDecoder(source, pruned_layer, hidden)
        given |= {
            "image_tokens": (torch.tensor([[1, 0, 0], [1, 0, 0]]), "tokens"),
            "kept_tokens": (torch.ones(2, 2, dtype=torch.int64), "kept_tokens"),
            "kept_mask": (torch.ones(2, 6, dtype=torch.int64), "kept_total"),
        }
    wanted = PREFIX_ATTENTION if sees_whole_prompt(source) else GROUP_QUERY_ATTENTION
    with contextlib.ExitStack() as stack:
        stack.enter_context(attention(source.get_decoder().config, wanted))
        stack.enter_context(adding(source))
        if rows > 1:
            tables = map(torch.from_numpy, rotary_table(source, max_context))
            stack.enter_context(mrope.fused(source, mrope.look_up(source, *tables)))
        return trace(
            module,
            (*(tensor for tensor, _ in given.values()), *past),
            (
                *(_named_axes(name, length, rows) for name, (_, length) in given.items()),
                tuple({0: "batch", 2: "past"} for _ in past),
            ),
            [*given, *past_names],
            ["logits", *(["hidden"] if hidden else []), *present_names],
        )


def _named_axes(name: str, length: str, rows: int) -> dict[int, str]:
    first = 1 if name == "position_ids" and rows > 1 else 0
    return {first: "batch", first + 1: length}


def rotary_table(source: Any, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(cosine, sine) of positions 0 … positions − 1, each float32 [positions, head dim / 2].

    Raises ExportError for embeddings that depend on more than the position.
    """
    text = source.config.text_config
    check_rotary(source)
    with torch.no_grad():
        pair = source.get_decoder().rotary_emb(
            torch.zeros(1, 1, text.hidden_size), position_ids=torch.arange(positions)[None]
        )
    cosine, sine = (table[0].numpy() for table in pair)  # [positions, head dim], the halves are equal
    half = cosine.shape[1] // 2
    for table in (cosine, sine):
        if not np.array_equal(table[:, :half], table[:, half:]):
            raise ExportError("The halves of the rotary table differ; this layout is not supported.")
    return cosine[:, :half].copy(), sine[:, :half].copy()


def trace(
    module: Any,
    arguments: tuple[Any, ...],
    axes: tuple[Any, ...],
    inputs: list[str],
    outputs: list[str],
    opset: int = OPSET,
    ir_version: int = IR_VERSION,
) -> ir.Model:
    """The graph of `module`, with module scopes on its nodes.

    axes: per argument, dimension → symbol of a size that may change.
    Raises ExportError when the graph's signature or opset is not the one asked for.
    """
    try:
        with torch.no_grad(), _without_notices():
            program = torch.onnx.export(
                module.eval(),
                arguments,
                dynamo=True,
                opset_version=opset,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=axes,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"{type(module).__name__} cannot be exported: {error}") from error
    model = program.model
    model.ir_version = ir_version
    found = ([value.name for value in model.graph.inputs], [value.name for value in model.graph.outputs])
    if found != (inputs, outputs) or model.opset_imports.get("") != opset:
        raise ExportError(
            f"{type(module).__name__} was exported as {found} at opset {model.opset_imports.get('')}; "
            f"expected {(inputs, outputs)} at opset {opset}. Is this version of torch supported?"
        )
    return model


@contextmanager
def _without_notices() -> Iterator[None]:
    """torch warns about its own internals and about packages that it does without; errors still show.

    What matters of the result is checked afterwards.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
