"""Exported graphs against the torch model that computes with the same integers.

Two comparisons. *Exact*: graph optimisation off and MatMulNBits in float32, which must agree with torch to
`TOLERANCE`; anything more is an error of the export. *Shipped*: full optimisation and int8 arithmetic inside
MatMulNBits, whose effect is measured and reported, apart from the effect of quantisation itself.

Inputs that are quantised while running (w8a8) need care: when torch and ONNX Runtime differ in the last
bit of a float, a value half-way between two integers rounds to different ones, and the difference is then a
whole step. So torch is given the graph's integer there, but only after proof that it is such a tie: the
integers are neighbours, and the float lies within `TOLERANCE` of their midpoint. Ties are counted.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from edgevlm_runner import anyres, native
from edgevlm_runner.contract import ModelSpec
from edgevlm_runner.generate import Generation, generate, prefill, splice
from edgevlm_runner.inputs import Inputs
from edgevlm_runner.runtimes import Runtime
from edgevlm_runner.runtimes.onnxruntime import OnnxRuntime
from numpy.typing import NDArray

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import expected
from edgevlm_deploy.export.components import Embedding
from edgevlm_deploy.export.observation import ObservedRuntime, write_exact
from edgevlm_deploy.quantize.table import QuantizedTable

TOLERANCE = 1e-5
"""Largest difference, relative to the largest magnitude in the tensor."""

TOKENS = 32
"""Generated tokens per sample, fewer where the context ends; end of sequence is ignored."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Verification:
    """Worst values over all samples. Differences are relative to the largest magnitude of the reference."""

    samples: int
    tokens: int
    """Greedy tokens compared, all equal to torch's in the exact graphs."""
    vision_difference: float
    embedding_difference: float
    logits_difference: float
    """Over prefill and every decoded token."""
    rounding_ties: int
    """Quantised inputs that torch and the graph rounded to different neighbours of one midpoint."""
    shipped_vision_difference: float
    shipped_logits_difference: float
    """Prefill logits of the shipped graphs against the exact ones."""
    shipped_max_abs_logit_difference: float
    shipped_tokens_equal: float
    """Share of the generated tokens, position by position, that the shipped graphs repeat."""
    hidden_difference: float | None = None
    """Of the hidden states behind the logits, where the graphs give them."""

    def numbers(self) -> dict[str, float]:
        """What was measured, name → number."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def verify(
    reference: Any, table: QuantizedTable, spec: ModelSpec, root: Path, samples: Sequence[Inputs]
) -> Verification:
    """Compare the graphs below `root` with `reference`, the fake-quantised torch model.

    Raises ExportError when the exact graphs differ from it by more than `TOLERANCE`.
    """
    with tempfile.TemporaryDirectory(prefix=".verify-", dir=root) as temporary:
        directory = Path(temporary)
        exact = {name: write_exact(root / path, directory) for name, path in spec.graphs.items()}
        observed: list[Observed] = []
        with ObservedRuntime(exact, spec, directory) as runtime:
            observed = [observe(runtime, spec, sample) for sample in samples]
        exact_spec = dataclasses.replace(
            spec, graphs={name: str(path.resolve()) for name, path in exact.items()}
        )
        with OnnxRuntime(Path("/"), exact_spec, optimize=False) as runner:
            runner.start(spec.max_context)
            check_same_tokens(runner, exact_spec, samples, observed, "a cache that is copied")
    with OnnxRuntime(root, spec) as shipped:
        return conclude(reference, table, spec, samples, observed, shipped, TOLERANCE)


def conclude(
    reference: Any,
    table: QuantizedTable,
    spec: ModelSpec,
    samples: Sequence[Inputs],
    observed: Sequence[Observed],
    shipped: Runtime,
    tolerance: float,
) -> Verification:
    """The exact graphs' answers against torch, the shipped graphs against those; the worst of all samples.

    Raises ExportError when the exact graphs differ by more than `tolerance`.
    """
    if not samples:
        raise ExportError("Verification needs at least one sample, got none.")
    pairs = list(zip(samples, observed, strict=True))
    compared = [compare(reference, table, spec, *pair, tolerance) for pair in pairs]
    shipped.start(spec.max_context)
    measured = [measure(shipped, spec, *pair) for pair in pairs]
    return Verification(
        samples=len(observed),
        tokens=sum(len(one.generation.token_ids) for one in observed),
        vision_difference=max(one.vision for one in compared),
        embedding_difference=max(one.embedding for one in compared),
        logits_difference=max(one.logits for one in compared),
        hidden_difference=max(one.hidden for one in compared) if spec.hidden else None,
        rounding_ties=sum(one.ties for one in compared),
        shipped_vision_difference=max(one.vision for one in measured),
        shipped_logits_difference=max(one.logits for one in measured),
        shipped_max_abs_logit_difference=max(one.max_abs_logits for one in measured),
        shipped_tokens_equal=float(np.mean([one.tokens_equal for one in measured])),
    )


class Observable(Runtime, Protocol):
    """A runtime that keeps what one question computed, until `clear`; see `ObservedRuntime`."""

    features: Floats | None
    logits: list[Floats]
    states: list[Floats]

    @property
    def quantized(self) -> Mapping[str, NDArray[np.int8]]:
        """Module with a static activation → its int8 inputs."""

    def clear(self) -> None: ...


@dataclass(frozen=True)
class Observed:
    """What the exact graphs computed for one sample."""

    generation: Generation
    features: Floats | None
    embeds: Floats
    """[1, prompt + generated − 1, D], image features in place: everything that the decoder was given."""
    logits: Floats
    """[generated, V]"""
    states: Floats | None
    """[generated, D], None where the graphs do not give them."""
    quantized: Mapping[str, NDArray[np.int8]]


@dataclass(frozen=True)
class Compared:
    vision: float
    embedding: float
    logits: float
    hidden: float
    ties: int


@dataclass(frozen=True)
class Measured:
    vision: float
    logits: float
    max_abs_logits: float
    tokens_equal: float


def observe(runtime: Observable, spec: ModelSpec, sample: Inputs) -> Observed:
    runtime.clear()
    made = generate_endlessly(runtime, spec, sample)
    logits, quantized = np.stack(runtime.logits), runtime.quantized
    states = np.stack(runtime.states) if spec.hidden else None
    features = runtime.features
    if features is not None:
        features = anyres.packed(features, sample.size, spec.image)
    embeds = _embedded(runtime.embed, features, spec, sample, made)
    return Observed(made, features, embeds, logits, states, quantized)


def generate_endlessly(runtime: Runtime, spec: ModelSpec, sample: Inputs) -> Generation:
    """Through the runner's own loop, past any end of sequence."""
    room = spec.max_context - sample.input_ids.shape[1]
    endless = dataclasses.replace(spec, eos_token_ids=(), max_new_tokens=min(TOKENS, room))
    return generate(runtime, endless, sample.pixel_values, sample.input_ids, sample.size)


def _embedded(
    embed: Callable[[NDArray[np.int64]], Floats],
    features: Floats | None,
    spec: ModelSpec,
    sample: Inputs,
    made: Generation,
) -> Floats:
    """[1, prompt + generated − 1, D]: what the decoder was given. The last token is never fed back.

    Image features are in the prompt alone: a generated image token is a token like any other.
    """
    prompt = splice(embed(sample.input_ids), features, sample.input_ids, spec)
    fed_back = np.array([made.token_ids[:-1]], np.int64)
    return np.concatenate([prompt, embed(fed_back)], axis=1) if fed_back.size else prompt


def check_same_tokens(
    runner: Runtime, spec: ModelSpec, samples: Sequence[Inputs], observed: Sequence[Observed], other: str
) -> None:
    """The runner's cache gives the tokens that another kind of cache gave. Raises ExportError."""
    for sample, wanted in zip(samples, observed, strict=True):
        made = generate_endlessly(runner, spec, sample)
        if made.token_ids != wanted.generation.token_ids:
            raise ExportError(
                f"The runner generated {list(made.token_ids)}, but {list(wanted.generation.token_ids)} with "
                f"{other}. This version of {spec.runtime} does not update the cache in place."
            )


def compare(
    reference: Any,
    table: QuantizedTable,
    spec: ModelSpec,
    sample: Inputs,
    observed: Observed,
    tolerance: float,
) -> Compared:
    """Torch on the same inputs; its decoder gets the graph's embeddings: each part is judged alone."""
    first = sample.input_ids.shape[1] - 1
    with torch.inference_mode(), given_ties(reference, table, observed.quantized) as ties:
        features = expected.features(reference, spec, sample)
        embeds = _embedded(
            lambda ids: Embedding(reference)(torch.from_numpy(ids)).numpy(),
            features,
            spec,
            sample,
            observed.generation,
        )
        states = expected.hidden(reference, spec, sample, observed.embeds)[
            :, first - observed.embeds.shape[1] :
        ]
        logits = reference.lm_head(states)[0].numpy()  # [generated, V]
    found = Compared(
        vision=0.0
        if features is None
        else difference("image features", observed.features, features, tolerance),
        embedding=difference("embeddings", observed.embeds, embeds, tolerance),
        logits=difference("logits", observed.logits, logits, tolerance),
        hidden=difference("hidden states", observed.states, states[0].numpy(), tolerance)
        if spec.hidden
        else 0.0,
        ties=ties[0],
    )
    tokens = tuple(int(token) for token in logits.argmax(-1))
    if tokens != observed.generation.token_ids:
        raise ExportError(
            f"Greedy tokens differ: torch {list(tokens)}, graph {list(observed.generation.token_ids)}."
        )
    return found


def difference(what: str, found: Floats | None, expected: Floats, tolerance: float) -> float:
    if found is None or found.shape != expected.shape:
        raise ExportError(f"The exported {what} have another shape than torch's {list(expected.shape)}.")
    difference = relative(found, expected)
    if not difference <= tolerance:  # also true for NaN
        raise ExportError(
            f"The exported {what} differ from the quantised torch model by {difference:.2e} of the "
            f"largest value; {tolerance:.0e} is allowed. The graph does not compute what was quantised."
        )
    return difference


def relative(found: Floats, expected: Floats) -> float:
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-30))


def measure(runtime: Runtime, spec: ModelSpec, sample: Inputs, observed: Observed) -> Measured:
    made = generate_endlessly(runtime, spec, sample)
    features = None
    if sample.pixel_values is not None:
        features = anyres.packed(runtime.encode_image(sample.pixel_values), sample.size, spec.image)
    runtime.reset()
    embeds = splice(runtime.embed(sample.input_ids), features, sample.input_ids, spec)
    first = prefill(runtime, spec, embeds, sample.input_ids, native.grid(sample.pixel_values, spec.image))
    pairs = zip(made.token_ids, observed.generation.token_ids, strict=True)
    vision = 0.0
    if features is not None and observed.features is not None:
        vision = relative(features, observed.features)
    return Measured(
        vision=vision,
        logits=relative(first, observed.logits[0]),
        max_abs_logits=float(np.abs(first - observed.logits[0]).max()),
        tokens_equal=float(np.mean([one == other for one, other in pairs])),
    )


@contextmanager
def given_ties(
    reference: Any, table: QuantizedTable, quantized: Mapping[str, NDArray[np.int8]]
) -> Iterator[list[int]]:
    """While torch runs, inputs on a rounding tie take the graph's integer; yields [number of them]."""
    ties = [0]

    def give(module: str) -> Any:
        activation = table[module].activation
        assert activation is not None
        integers = torch.from_numpy(quantized[module].astype(np.float32))

        def hook(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            exact = args[0] / activation.scale + activation.zero_point
            own = (args[0] / activation.scale).round() + activation.zero_point
            own = own.clamp(-128, 127)
            other = integers.reshape(own.shape)
            differs = own != other
            midpoint = (own + other) / 2
            reach = TOLERANCE * float((exact - activation.zero_point).abs().max())
            is_tie = ((own - other).abs() == 1) & ((exact - midpoint).abs() <= reach)
            if bool((differs & ~is_tie).any()):
                raise ExportError(
                    f"{module}: {int((differs & ~is_tie).sum())} of {own.numel()} inputs are quantised to "
                    "other integers than in torch, and not because of a rounding tie."
                )
            ties[0] += int(differs.sum())
            return ((other - activation.zero_point) * activation.scale, *args[1:])

        return hook

    # In front of the fake-quantising hook, which then rounds an integer multiple of its scale to itself.
    handles = [
        reference.get_submodule(module).register_forward_pre_hook(give(module), prepend=True)
        for module in quantized
    ]
    try:
        yield ties
    finally:
        for handle in handles:
            handle.remove()
