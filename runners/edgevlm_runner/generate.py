"""Greedy generation: picture and prompt in, tokens with their log-probabilities and timings out."""

from __future__ import annotations

import dataclasses
import time
from typing import Callable, Generator, Optional, Tuple, Union, cast

import numpy as np

from edgevlm_runner import anyres, native, positions
from edgevlm_runner.contract import Answering, AnyresSpec, EncoderDecoderSpec, ModelSpec, NativeSpec
from edgevlm_runner.errors import ExecutionError, PromptError
from edgevlm_runner.runtimes import EncoderDecoder, PruningRuntime, Runtime

AnyRuntime = Union[Runtime, EncoderDecoder]


@dataclasses.dataclass(frozen=True)
class Token:
    """One generated token, as soon as it is known."""

    id: int
    logprob: float
    """Natural logarithm of its probability, from raw logits."""
    seconds: float
    """Time since the token before it; for the first one, since the start: time to first token."""


@dataclasses.dataclass(frozen=True)
class Timings:
    """Wall-clock time by phase, measured with `time.perf_counter`."""

    vision_seconds: float
    """All tiles of the picture; 0 without one."""
    prefill_seconds: float
    """Embedding, splicing and the first decoder step over the whole prompt."""
    token_seconds: Tuple[float, ...]
    """Each decoder step after the first token: one entry fewer than there are tokens."""

    @property
    def time_to_first_token_seconds(self) -> float:
        return self.vision_seconds + self.prefill_seconds

    @property
    def total_seconds(self) -> float:
        return self.time_to_first_token_seconds + sum(self.token_seconds)


@dataclasses.dataclass(frozen=True)
class Generation:
    token_ids: Tuple[int, ...]
    """End-of-sequence included when it was produced."""
    token_logprobs: Tuple[float, ...]
    finished: bool
    """False when `max_new_tokens` ended the answer."""
    prompt_tokens: int
    """Tokens of the prompt, image tokens included."""
    timings: Timings
    pooled: Optional[np.ndarray] = None
    """What a Selector looks at besides the probability, float32 [3 D]; only of graphs with `hidden`."""


@dataclasses.dataclass(frozen=True)
class Read:
    """A question that was read."""

    logits: np.ndarray
    """float32 [V] of the first answer token."""
    step: Callable[[int], np.ndarray]
    """A token of the answer → logits of the next."""
    pooled: Optional[np.ndarray]
    """As `Generation.pooled`."""


def generate(
    runtime: AnyRuntime,
    spec: Answering,
    pixel_values: Optional[np.ndarray],
    input_ids: np.ndarray,
    size: Optional[Tuple[int, int]] = None,
) -> Generation:
    """Answer one question; see `stream`."""
    tokens = stream(runtime, spec, pixel_values, input_ids, size)
    try:
        while True:
            next(tokens)
    except StopIteration as end:
        generation: Generation = end.value
        return generation


def stream(
    runtime: AnyRuntime,
    spec: Answering,
    pixel_values: Optional[np.ndarray],
    input_ids: np.ndarray,
    size: Optional[Tuple[int, int]] = None,
) -> Generator[Token, None, Generation]:
    """Yield tokens until end of sequence or `spec.max_new_tokens`; the generator returns the `Generation`.

    pixel_values float32 [tiles, 3, S, S] ([1, 3, H, W] at its own resolution) or None, input_ids int64 [1, T]
    with image tokens expanded, size as in `Inputs`.
    `runtime.start` must have allocated a cache of `spec.max_context` tokens; it is reset here. An
    encoder–decoder takes one picture [1, 3, S, S] and the tokens of the question alone.

    Raises PromptError, before anything is computed, when the image tokens do not match the picture or
    prompt and answer exceed the context.
    """
    if isinstance(spec, ModelSpec):
        check_prompt(spec, pixel_values, input_ids, size)
    start = time.perf_counter()
    features = None
    if pixel_values is not None:
        features = anyres.packed(runtime.encode_image(pixel_values), size, spec.image)
    seen = time.perf_counter()
    read = _read(runtime, spec, features, input_ids, native.grid(pixel_values, spec.image))
    token, logprob = greedy(read.logits)
    prefilled = time.perf_counter()
    ids, logprobs, steps = [token], [logprob], []
    yield Token(token, logprob, prefilled - start)
    while token not in spec.eos_token_ids and len(ids) < spec.max_new_tokens:
        before = time.perf_counter()  # what the consumer did since the last token is not counted
        token, logprob = greedy(read.step(token))
        steps.append(time.perf_counter() - before)
        ids.append(token)
        logprobs.append(logprob)
        yield Token(token, logprob, steps[-1])
    return Generation(
        token_ids=tuple(ids),
        token_logprobs=tuple(logprobs),
        finished=token in spec.eos_token_ids,
        prompt_tokens=int(input_ids.shape[1]),
        timings=Timings(seen - start, prefilled - seen, tuple(steps)),
        pooled=read.pooled,
    )


def _read(
    runtime: AnyRuntime,
    spec: Answering,
    features: Optional[np.ndarray],
    input_ids: np.ndarray,
    grid: Optional[Tuple[int, int]],
) -> Read:
    if isinstance(spec, EncoderDecoderSpec):
        return _read_question(cast(EncoderDecoder, runtime), spec, features, input_ids)
    return _read_prompt(cast(Runtime, runtime), spec, features, input_ids, grid)


def _read_prompt(
    runtime: Runtime,
    spec: ModelSpec,
    features: Optional[np.ndarray],
    input_ids: np.ndarray,
    grid: Optional[Tuple[int, int]],
) -> Read:
    """One decoder over the whole prompt, image features in place."""
    words = runtime.embed(input_ids)
    runtime.reset()
    embeds = splice(words, features, input_ids, spec)
    logits = prefill(runtime, spec, embeds, input_ids, grid)
    pooled = None
    if spec.hidden:
        own = None if features is None else features[..., : spec.hidden_size]
        read = words[input_ids != spec.image_token_id][:, : spec.hidden_size]
        pooled = pool(own, read, runtime.hidden())
    return Read(logits, lambda token: runtime.step(runtime.embed(np.array([[token]], np.int64))), pooled)


def _read_question(
    runtime: EncoderDecoder,
    spec: EncoderDecoderSpec,
    features: Optional[np.ndarray],
    input_ids: np.ndarray,
) -> Read:
    """The question is encoded once; the answer begins with a token of its own."""
    if features is None:
        raise PromptError("This model answers questions about a picture; give one (`--image`).")
    runtime.read_question(features, input_ids)
    return Read(runtime.step(spec.start_token_id), runtime.step, None)


def check_prompt(
    spec: ModelSpec,
    pixel_values: Optional[np.ndarray],
    input_ids: np.ndarray,
    size: Optional[Tuple[int, int]] = None,
) -> None:
    """Raises PromptError when image tokens and tiles disagree, or the context is too short."""
    tiles = 0 if pixel_values is None else len(pixel_values)
    per_tile = spec.prompt.tokens_per_tile
    if pixel_values is not None and isinstance(spec.image, NativeSpec):
        per_tile = native.tokens(pixel_values, spec.image)
    expected = tiles * per_tile
    if size is not None and isinstance(spec.image, AnyresSpec):
        expected = anyres.tokens(size, spec.image)
    found = int(np.count_nonzero(input_ids == spec.image_token_id))
    if found != expected:
        raise PromptError(
            f"The prompt has {found} image tokens, the picture needs {expected} ({tiles} tiles of "
            f"{per_tile}). Does the question itself contain {spec.prompt.image_token!r}?"
        )
    length = int(input_ids.shape[1])
    if length == 0:
        raise PromptError("The prompt is empty; it needs at least one token.")
    if length + spec.max_new_tokens > spec.max_context:
        raise PromptError(
            f"The prompt has {length} tokens ({found} of them from the picture); with up to "
            f"{spec.max_new_tokens} new ones it exceeds the context of {spec.max_context}. Shorten the "
            "question, or compile with fewer tiles (`image.max_tiles`), smaller pictures "
            "(`image.max_pixels`) or a larger `max_context`."
        )


def prefill(
    runtime: Runtime,
    spec: ModelSpec,
    embeds: np.ndarray,
    input_ids: np.ndarray,
    grid: Optional[Tuple[int, int]] = None,
) -> np.ndarray:
    """Read the prompt, float32 [1, T, D] of int64 [1, T], into an empty context → logits float32 [V].

    grid: (rows, columns) of its image tokens, where their places in the picture count (`native.grid`).

    Raises ExecutionError when the decoder is to drop image tokens and the runtime cannot.
    """
    places = input_ids == spec.image_token_id
    if spec.position_rows > 1:
        return runtime.step(embeds, positions.of_prompt(places, grid))
    if spec.pruning is None:
        return runtime.step(embeds)
    if not isinstance(runtime, PruningRuntime):
        raise ExecutionError(f"{spec.runtime} has no decoder that drops image tokens; compile without fastv.")
    return runtime.read_prompt(embeds, places)


def splice(
    embeds: np.ndarray, features: Optional[np.ndarray], input_ids: np.ndarray, spec: ModelSpec
) -> np.ndarray:
    """Put image features [tiles, tokens per tile, D] where the image tokens are in embeds [1, T, D].

    Raises ExecutionError when the vision encoder gave another number of features than tokens.
    """
    if features is None:
        return embeds
    places = input_ids == spec.image_token_id
    rows = features.reshape(-1, features.shape[-1])
    if len(rows) != int(places.sum()):
        raise ExecutionError(
            f"The vision encoder gave {len(rows)} image features for {int(places.sum())} image tokens; "
            "graph and manifest are of different models."
        )
    spliced: np.ndarray = embeds.copy()
    spliced[places] = rows
    return spliced


def pool(features: Optional[np.ndarray], words: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """float32 [3 D]: the largest of each image feature and of each feature of the prompt's words, and the
    hidden state behind the first answer token. Zeros stand for the picture of a question without one.

    features [tiles, tokens per tile, D] or None, words [T, D], hidden [D]. After the Selector of Whitehead et
    al., "Reliable Visual Question Answering", ECCV 2022.
    """
    seen = np.zeros_like(hidden) if features is None else features.reshape(-1, features.shape[-1]).max(axis=0)
    read = words.max(axis=0) if len(words) else np.zeros_like(hidden)
    return np.concatenate([seen, read, hidden]).astype(np.float32)


def greedy(logits: np.ndarray) -> Tuple[int, float]:
    """(most likely token, natural logarithm of its probability) of raw logits float32 [V].

    The softmax is summed in float64: a float32 sum loses half the digits over 50,000 entries.
    Raises ExecutionError when the logits are not finite.
    """
    if not np.all(np.isfinite(logits)):
        raise ExecutionError("The decoder's logits are not finite: the compiled model is broken.")
    token = int(np.argmax(logits))
    return token, float(-np.log(np.exp(logits - logits[token]).sum(dtype=np.float64)))
