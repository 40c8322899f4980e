"""LiteRT: one .tflite file with a signature per step and length, and a KV cache that is written in place.

Graphs have static shapes. `prefill_N` takes N tokens at once, `decode` one; with the suffix `_cache_C` they
work on a cache of C tokens instead of the longest. A question takes the shortest cache that holds prompt
and answer, because decoding costs what is allocated.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional, Tuple, TypeVar

import numpy as np

from edgevlm_runner.contract import ModelSpec, sides
from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.positions import Positions
from edgevlm_runner.runtimes.litert_executors import STATE, Signature, open_executor
from edgevlm_runner.storage import file_digest

Self = TypeVar("Self", bound="LiteRt")

MODEL = "model"
HIDDEN = np.float32(-1e4)
"""Added to the score of a token that is not seen: e^−10⁴ is 0, and unlike −inf it never gives NaN."""

_STEP = re.compile(r"(?:decode|prefill_\d+)(?:_cache_\d+)?")
_EMBED = re.compile(r"embed_\d+")


class LiteRt:
    """`edgevlm_runner.runtimes.Runtime` on LiteRT.

    Raises RuntimeUnavailable when the package is missing, ExecutionError when the file is missing, damaged
    or of another shape than `spec` says.
    """

    def __init__(
        self,
        root: Path,
        spec: ModelSpec,
        threads: int = 1,
        accelerator: str = "cpu",
        packed_weights: Optional[Path] = None,
        in_place: bool = True,
    ) -> None:
        """Load the file that `spec.graphs` names below `root`.

        accelerator: "cpu", "gpu" or "npu"; what the latter two cannot do runs on the CPU.
        packed_weights: folder where XNNPACK keeps weights in its own order for the next start; None goes
            without, as does a folder that cannot be written.
        in_place: False takes LiteRT's older Interpreter, which copies the cache at every step.
        """
        self._spec = spec
        self._path = _model_path(root, spec)
        kept = packed_file(packed_weights, self._path)
        self._executor = open_executor(self._path, threads, accelerator, kept, in_place)
        signatures = self._executor.signatures
        self._steps = {
            (shapes.inputs["mask"][3], shapes.inputs["mask"][2]): name
            for name, shapes in signatures.items()
            if _STEP.fullmatch(name) and len(shapes.inputs.get("mask", ())) == 4
        }
        """(cache length, new tokens) → signature"""
        self._embeds = sorted(int(name[6:]) for name in signatures if _EMBED.fullmatch(name))
        self._check_signatures(signatures)
        self._caches: Dict[int, Any] = {}
        self._hidden = np.zeros(0, np.float32)
        self._tokens = 0
        self._length = 0
        self._positions = Positions(spec.position_rows)

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """float32 [tiles, 3, S, S] → float32 [tiles, tokens per tile, D], tile by tile."""
        features = [
            self._run("encode_image", {"pixel_values": np.ascontiguousarray(tile[None], np.float32)})[
                "image_features"
            ]
            for tile in pixel_values
        ]
        return np.concatenate(features) if features else np.zeros((0, 0, self._spec.embed_size), np.float32)

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """int64 [1, T] → float32 [1, T, D]."""
        found = []
        for first, count, size in pieces(
            0, input_ids.shape[1], self._embeds, input_ids.shape[1] + max(self._embeds)
        ):
            ids = np.zeros((1, size), np.int32)
            ids[0, :count] = input_ids[0, first : first + count]
            found.append(self._run(f"embed_{size}", {"token_ids": ids})["embeddings"][:, :count])
        return np.concatenate(found, axis=1)

    def start(self, max_context: int) -> None:
        """Allocate the longest cache, which must hold `max_context` tokens; shorter ones come when used."""
        longest = max(length for length, _ in self._steps)
        if max_context > longest:
            raise ExecutionError(
                f"{self._path}: made for a context of {longest} tokens, {max_context} were asked for."
            )
        self._cache(longest)
        self.reset()

    def reset(self) -> None:
        """Forget all tokens; what is left in the cache is masked and never read."""
        self._tokens = 0
        self._length = 0
        self._positions.reset()

    def step(self, embeds: np.ndarray, positions: Optional[np.ndarray] = None) -> np.ndarray:
        """Append float32 [1, T, D] to the context → logits float32 [V] of its last token.

        All but the last token go through the prefill graphs, in pieces; the last one is decoded. A prompt
        whose tokens all see each other is prefilled whole, its last token too, which is then decoded again.
        """
        total = self._tokens + embeds.shape[1]
        if self._tokens == 0:
            self._length = self._choose(total + self._spec.max_new_tokens)
        if total > self._length:
            raise ExecutionError(
                f"{total} tokens do not fit the cache of {self._length}, chosen for prompt and answer."
            )
        places = self._positions.take(embeds.shape[1], positions)
        lengths = [tokens for cache, tokens in self._steps if cache == self._length]
        whole = self._spec.prefix and embeds.shape[1] > 1
        before = embeds.shape[1] - (0 if whole else 1)
        if whole and before > max(lengths):
            raise ExecutionError(
                f"The prompt's {before} tokens all see each other; the longest prefill takes {max(lengths)}."
            )
        for first, count, size in pieces(self._tokens, before, lengths, self._length):
            at = first - self._tokens
            self._append(embeds[:, at : at + count], first, size, places[..., at : at + count])
        outputs = self._append(embeds[:, -1:], total - 1, 1, places[..., -1:])
        if self._spec.hidden:
            self._hidden = outputs["hidden"].reshape(-1)
        self._tokens = total
        logits: np.ndarray = outputs["logits"].reshape(-1)
        return logits

    def hidden(self) -> np.ndarray:
        """float32 [D] of the last step."""
        return self._hidden

    def versions(self) -> Dict[str, str]:
        return {**self._executor.versions, "numpy": np.__version__}

    def close(self) -> None:
        self._caches = {}
        self._executor.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _append(self, embeds: np.ndarray, first: int, size: int, places: np.ndarray) -> Dict[str, np.ndarray]:
        """One run over up to `size` tokens into the cache from `first` on. Padding is overwritten by later
        tokens. places: where the tokens stand, of which only M-RoPE takes notice.
        """
        count = embeds.shape[1]
        padded = np.zeros((1, size, embeds.shape[2]), np.float32)
        padded[:, :count] = embeds
        positions = np.arange(first, first + size, dtype=np.int32)
        seen_up_to = np.full(size, first + count - 1) if self._spec.prefix else positions
        hidden = np.arange(self._length)[None] > seen_up_to[:, None]
        inputs = {
            "embeddings": padded,
            "input_pos": positions,
            "mask": np.where(hidden, HIDDEN, np.float32(0))[None, None],
        }
        if self._spec.position_rows > 1:
            inputs["position_ids"] = np.zeros((self._spec.position_rows, 1, size), np.int32)
            inputs["position_ids"][..., :count] = places
        return self._run(self._steps[self._length, size], inputs, self._cache(self._length))

    def _choose(self, tokens: int) -> int:
        """The shortest cache that holds `tokens`, else the longest."""
        lengths: List[int] = sorted({length for length, _ in self._steps})
        return next((length for length in lengths if length >= tokens), lengths[-1])

    def _cache(self, length: int) -> Any:
        if length not in self._caches:
            self._caches[length] = self._executor.allocate(self._steps[length, 1])
        return self._caches[length]

    def _run(self, signature: str, inputs: Dict[str, np.ndarray], cache: Any = None) -> Dict[str, np.ndarray]:
        """Outputs besides the cache, by name."""
        try:
            outputs: Dict[str, np.ndarray] = self._executor.run(signature, inputs, cache)
            return outputs
        except Exception as error:  # LiteRT raises ValueError, RuntimeError and KeyError alike
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise ExecutionError(f"LiteRT failed in {signature} on {shapes}: {error}") from error

    def _check_signatures(self, signatures: Dict[str, Signature]) -> None:
        spec = self._spec
        height, wide = sides(spec.image)
        width = spec.embed_size
        places = {"position_ids": (spec.position_rows, 1, 1)} if spec.position_rows > 1 else {}
        cache = (1, spec.kv_heads, spec.max_context, spec.head_dim)
        state = {f"{STATE}{part}_{i}": cache for i in range(spec.layers) for part in ("k", "v")}
        expected = {
            "encode_image": Signature(
                {"pixel_values": (1, 3, height, wide)},
                {"image_features": (1, spec.prompt.tokens_per_tile, width)},
            ),
            "embed_1": Signature({"token_ids": (1, 1)}, {"embeddings": (1, 1, width)}),
            "decode": Signature(
                {
                    "embeddings": (1, 1, width),
                    "input_pos": (1,),
                    "mask": (1, 1, 1, spec.max_context),
                    **places,
                    **state,
                },
                {
                    "logits": (1, 1, spec.vocab_size),
                    **({"hidden": (1, 1, spec.hidden_size)} if spec.hidden else {}),
                    **state,
                },
            ),
        }
        for name, wanted in expected.items():
            found = signatures.get(name)
            if found is None:
                self._refuse_without(name, signatures)
            for kind, got, shapes in zip(("input", "output"), found, wanted):
                wrong = sorted(one for one in {**got, **shapes} if got.get(one) != shapes.get(one))
                if wrong:
                    raise ExecutionError(
                        f"{self._path}: {kind} {wrong[0]} of {name} is {got.get(wrong[0])}, the manifest "
                        f"says {shapes.get(wrong[0])}. Graph and manifest are of different models."
                    )
        for length in {cache for cache, _ in self._steps} - {cache for cache, one in self._steps if one == 1}:
            self._refuse_without(f"decode_cache_{length}", signatures)

    def _refuse_without(self, name: str, signatures: Dict[str, Signature]) -> NoReturn:
        raise ExecutionError(
            f"{self._path}: has no signature {name}, only {', '.join(sorted(signatures)) or 'none'}. "
            "Compile the bundle again."
        )


def pieces(first: int, count: int, lengths: List[int], end: int) -> List[Tuple[int, int, int]]:
    """Cut `count` tokens from position `first` into runs: (position, tokens, length of the graph).

    A run takes the shortest graph that holds all that is left, else the longest. Its padding must lie before
    `end` too: a write beyond the end of a cache is moved back, over tokens that are still needed.
    """
    found = []
    while count:
        fitting = [length for length in lengths if first + length <= end]
        size = min((length for length in fitting if length >= count), default=max(fitting))
        taken = min(size, count)
        found.append((first, taken, size))
        first, count = first + taken, count - taken
    return found


def packed_file(folder: Optional[Path], path: Path) -> Optional[Path]:
    """Named by the graph's digest: XNNPACK checks its own version, not whose weights it finds."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder / f"{file_digest(path)}.bin" if os.access(str(folder), os.W_OK) else None


def _model_path(root: Path, spec: ModelSpec) -> Path:
    name = spec.graphs.get(MODEL)
    if name is None or not (root / name).is_file():
        raise ExecutionError(f"{root}: the graph of the model ({name}) is missing.")
    return root / name
