"""The smallest VLM in the form that TensorRT bundles have, made by hand, and the same model in NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from edgevlm_runner.contract import ImageSpec, ModelSpec, PromptSpec

LAYERS, KV, HEAD, D, V = 2, 2, 8, 16, 24
SIDE, PER_TILE, TILES = 4, 3, 2
CONTEXT, PREFILL = 203, 16
IMAGE_TOKEN = 5


def weights() -> dict[str, np.ndarray]:
    """float32, all of them values that float16 holds."""
    rng = np.random.default_rng(11)
    found = {"table": rng.standard_normal((V, D)), "wave": rng.uniform(0.02, 0.4, D)}
    for layer in range(LAYERS):
        for name in ("q", "k", "v", "o"):
            found[f"{name}_{layer}"] = rng.standard_normal((D, D)) / 4
    head = rng.integers(-127, 128, (D, V)).astype(np.int8)
    return {**{name: one.astype(np.float16).astype(np.float32) for name, one in found.items()}, "head": head}


HEAD_SCALE = np.float32(2**-6)


def _shapes(low: list[int], typical: list[int], high: list[int]) -> list[list[int]]:
    return [low, typical, high]


def _decoder_profiles(updates: bool) -> Iterator[dict[str, Any]]:
    for tokens in (PREFILL, 1):
        half = max(1, tokens // 2)
        columns = [CONTEXT] * 3 if updates else [64 + 1, 128 + half, CONTEXT + tokens]
        profile: dict[str, Any] = {
            "inputs_embeds": _shapes([1, 1, D], [1, half, D], [1, tokens, D]),
            "position_ids": _shapes([1, 1], [1, half], [1, tokens]),
            "mask": _shapes([1, 1, 1, columns[0]], [1, 1, half, columns[1]], [1, 1, tokens, columns[2]]),
        }
        cache = (
            [[1, KV, CONTEXT, HEAD]] * 3 if updates else [[1, rows, KV, HEAD] for rows in (64, 128, CONTEXT)]
        )
        for layer in range(LAYERS):
            profile.update({f"past_key.{layer}": cache, f"past_value.{layer}": cache})
        if updates:
            profile["write_index"] = [[1], [1], [1]]
        yield profile


def spec(updates: bool) -> ModelSpec:
    pixels = [[tiles, 3, SIDE, SIDE] for tiles in (1, 1, TILES)]
    return ModelSpec(
        family="smolvlm",
        runtime="tensorrt",
        graphs={name: f"{name}.onnx" for name in ("vision_encoder", "embedding", "decoder")},
        image=ImageSpec(SIDE, SIDE, False, None, 1, 1 / 255, (0.5,) * 3, (0.5,) * 3),
        prompt=PromptSpec("{image}{question}", "{question}", "<image>", "<fake>", "<global>", PER_TILE),
        image_token_id=IMAGE_TOKEN,
        eos_token_ids=(),
        max_new_tokens=40,
        max_context=CONTEXT,
        layers=LAYERS,
        kv_heads=KV,
        head_dim=HEAD,
        hidden_size=D,
        vocab_size=V,
        hidden=not updates,
        profiles={
            "vision_encoder": [{"pixel_values": pixels}],
            "embedding": [{"input_ids": [[1, 1], [1, 8], [1, PREFILL]]}],
            "decoder": list(_decoder_profiles(updates)),
        },
    )


class Reference:
    """The model in float32, computed from all embeddings at every step."""

    def __init__(self) -> None:
        self._weights = weights()
        self._seen = np.zeros((1, 0, D), np.float32)

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        return pixel_values.reshape(len(pixel_values), PER_TILE, D)

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        return self._weights["table"][input_ids]

    def reset(self) -> None:
        self._seen = self._seen[:, :0]

    def step(self, embeds: np.ndarray) -> np.ndarray:
        self._seen = np.concatenate([self._seen, embeds], axis=1)
        w, tokens = self._weights, self._seen.shape[1]
        x = self._seen + np.sin(np.arange(tokens, dtype=np.float32)[None, :, None] * w["wave"])
        for layer in range(LAYERS):
            q, k, v = (
                (x @ w[f"{name}_{layer}"]).reshape(1, tokens, KV, HEAD).transpose(0, 2, 1, 3)
                for name in "qkv"
            )
            scores = q @ k.transpose(0, 1, 3, 2) + np.where(np.tri(tokens) > 0, 0, -1e4)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (shares / shares.sum(-1, keepdims=True)) @ v
            x = x + mixed.transpose(0, 2, 1, 3).reshape(1, tokens, D) @ w[f"o_{layer}"]
        self._hidden = x[0, -1]
        return (x[0, -1] @ (w["head"].astype(np.float32) * HEAD_SCALE)).astype(np.float32)

    def hidden(self) -> np.ndarray:
        return self._hidden


def _attention(layer: int, updates: bool) -> str:
    if updates:
        cached = f"""
  new_k_{layer} = Transpose<perm=[0,2,1,3]>(k_rows_{layer})
  new_v_{layer} = Transpose<perm=[0,2,1,3]>(v_rows_{layer})
  present_key__{layer} = TensorScatter<axis=2>(past_key__{layer}, new_k_{layer}, write_index)
  present_value__{layer} = TensorScatter<axis=2>(past_value__{layer}, new_v_{layer}, write_index)
  keys_{layer} = Transpose<perm=[0,1,3,2]>(present_key__{layer})
  values_{layer} = Identity(present_value__{layer})"""
    else:
        cached = f"""
  all_k_{layer} = Concat<axis=1>(past_key__{layer}, k_rows_{layer})
  all_v_{layer} = Concat<axis=1>(past_value__{layer}, v_rows_{layer})
  keys_{layer} = Transpose<perm=[0,2,3,1]>(all_k_{layer})
  values_{layer} = Transpose<perm=[0,2,1,3]>(all_v_{layer})"""
    rows = "".join(
        f"""
  {name}_flat_{layer} = MatMul(x_{layer}, {name}_{layer})
  {name}_rows_{layer} = Reshape({name}_flat_{layer}, split)"""
        for name in "qkv"
    )
    return f"""{rows}{cached}
  queries_{layer} = Transpose<perm=[0,2,1,3]>(q_rows_{layer})
  raw_{layer} = MatMul(queries_{layer}, keys_{layer})
  scores_{layer} = Add(raw_{layer}, mask)
  shares_{layer} = Softmax<axis=-1>(scores_{layer})
  heads_{layer} = MatMul(shares_{layer}, values_{layer})
  back_{layer} = Transpose<perm=[0,2,1,3]>(heads_{layer})
  mixed_{layer} = Reshape(back_{layer}, join)
  out_{layer} = MatMul(mixed_{layer}, o_{layer})
  x_{layer + 1} = Add(x_{layer}, out_{layer})"""


def decoder(updates: bool, half: bool) -> str:
    """ONNX text; "__" stands for a dot."""
    kind = "float16" if half else "float"
    cache = f"1, {KV}, {CONTEXT}, {HEAD}" if updates else f"1, past, {KV}, {HEAD}"
    parts = [(layer, part) for layer in range(LAYERS) for part in ("key", "value")]
    pasts = ", ".join(f"{kind}[{cache}] past_{part}__{layer}" for layer, part in parts)
    if updates:
        outputs = ", ".join(f"{kind}[{cache}] present_{part}__{layer}" for layer, part in parts)
    else:
        outputs = f"{kind}[{2 * LAYERS}, tokens, {KV}, {HEAD}] new_keys_values"
    mask = f"1, 1, tokens, {CONTEXT if updates else 'columns'}"
    extra = ", int64[1] write_index" if updates else ""
    square = ", ".join(f"{kind}[{D}, {D}] {name}_{layer}" for layer in range(LAYERS) for name in "qkvo")
    rows = ", ".join(f"{part[0]}_rows_{layer}" for layer, part in parts)
    keep = "" if updates else f"new_keys_values = Concat<axis=0>({rows})\n  hidden = Cast<to=1>(final)"
    given = f"float[1, {V}] logits" + ("" if updates else f", float[1, {D}] hidden")
    return f"""<ir_version: 10, opset_import: ["" : {24 if updates else 21}]>
g ({kind}[1, tokens, {D}] inputs_embeds, int32[1, tokens] position_ids, {kind}[{mask}] mask{extra}, {pasts},
   {square}, {kind}[{D}] wave, int8[{D}, {V}] head, {kind} scale)
=> ({given}, {outputs})
<int64[4] split = {{1, -1, {KV}, {HEAD}}}, int64[3] join = {{1, -1, {D}}}, int64[1] two = {{2}},
 int64 last = {{-1}}> {{
  place = Cast<to={10 if half else 1}>(position_ids)
  column = Unsqueeze(place, two)
  angle = Mul(column, wave)
  sine = Sin(angle)
  x_0 = Add(inputs_embeds, sine){"".join(_attention(layer, updates) for layer in range(LAYERS))}
  final = Gather<axis=1>(x_{LAYERS}, last)
  columns_of_head = DequantizeLinear(head, scale)
  answer = MatMul(final, columns_of_head)
  logits = Cast<to=1>(answer)
  {keep}
}}"""


def write(folder: Path, updates: bool, half: bool) -> None:
    """The three graphs; the decoder's weights lie beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = "float16" if half else "float"
    head = '<ir_version: 10, opset_import: ["" : 21]>'
    vision = f"""{head}
g ({kind}[tiles, 3, {SIDE}, {SIDE}] pixel_values) => ({kind}[tiles, {PER_TILE}, {D}] image_features)
<int64[3] shape = {{0, {PER_TILE}, {D}}}> {{ image_features = Reshape(pixel_values, shape) }}"""
    embedding = f"""{head}
g (int32[1, tokens] input_ids, {kind}[{V}, {D}] table) => ({kind}[1, tokens, {D}] inputs_embeds)
{{ inputs_embeds = Gather(table, input_ids) }}"""
    onnx.save(_model(vision, half), folder / "vision_encoder.onnx")
    onnx.save(_model(embedding, half), folder / "embedding.onnx")
    onnx.save(
        _model(decoder(updates, half), half),
        folder / "decoder.onnx",
        save_as_external_data=True,
        location="decoder.data",
        size_threshold=0,
    )


def _model(text: str, half: bool) -> Any:
    model = onnx.parser.parse_model(text)
    for value in (*model.graph.input, *model.graph.output):
        value.name = value.name.replace("__", ".")
    for node in model.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
        node.output[:] = [name.replace("__", ".") for name in node.output]
    arrays = {**weights(), "scale": HEAD_SCALE}
    for value in [value for value in model.graph.input if value.name in arrays]:
        array = np.asarray(arrays[value.name])
        stored = array if array.dtype == np.int8 else array.astype(np.float16 if half else np.float32)
        model.graph.input.remove(value)
        model.graph.initializer.append(onnx.numpy_helper.from_array(stored, value.name))
    onnx.checker.check_model(model)
    return model
