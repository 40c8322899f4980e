"""An encoder–decoder's exported graphs against the torch model that computes with the same integers.

As in `verify`: *exact* graphs must agree with torch to a tolerance and write the same tokens; what the
*shipped* graphs add is measured and reported.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgevlm_runner.contract import EncoderDecoderSpec
from edgevlm_runner.inputs import Inputs
from edgevlm_runner.runtimes import EncoderDecoder
from edgevlm_runner.runtimes.onnxruntime_encoder_decoder import OnnxEncoderDecoder
from numpy.typing import NDArray

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import graph
from edgevlm_deploy.export.observation import expose_quantized_inputs, write_exact
from edgevlm_deploy.export.passes.matmul_integer import UINT8_SHIFT
from edgevlm_deploy.export.verify import TOKENS, TOLERANCE, Floats, difference, given_ties, relative
from edgevlm_deploy.export.verify_encoders import pixels_of
from edgevlm_deploy.quantize.table import QuantizedTable

EXACTLY = {"session.x64quantprecision": "1"}


@dataclass(frozen=True)
class AnswerVerification:
    """Worst values over all samples. Differences are relative to the largest magnitude of the reference."""

    samples: int
    tokens: int
    """Greedy tokens compared, all equal to torch's in the exact graphs."""
    vision_difference: float
    question_difference: float
    logits_difference: float
    """Over every token of the answers."""
    rounding_ties: int
    """Quantised inputs that torch and the graph rounded to different neighbours of one midpoint."""
    shipped_vision_difference: float
    shipped_logits_difference: float
    """First logits of the shipped graphs against the exact ones."""
    shipped_max_abs_logit_difference: float
    shipped_tokens_equal: float
    """Share of the generated tokens, position by position, that the shipped graphs repeat."""

    def numbers(self) -> dict[str, float]:
        """What was measured, name → number."""
        return asdict(self)


@dataclass(frozen=True)
class Observed:
    """What graphs computed for one sample, and their int8 inputs by module."""

    image: Floats
    """[1, image tokens, D]"""
    question: Floats
    """[1, T, D]"""
    tokens: tuple[int, ...]
    """Past any end of sequence, as many as the cache holds, at most `verify.TOKENS`."""
    logits: Floats
    """[tokens, V]"""
    quantized: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)


def verify(
    reference: Any, table: QuantizedTable, spec: EncoderDecoderSpec, root: Path, samples: Sequence[Inputs]
) -> AnswerVerification:
    """Compare the ONNX Runtime graphs below `root` with `reference`, the fake-quantised torch model.

    Raises ExportError when the exact graphs differ from it by more than `verify.TOLERANCE`.
    """
    with tempfile.TemporaryDirectory(prefix="edgevlm-verify-") as temporary:
        exact = Path(temporary)
        exposed = {}
        for component, name in spec.graphs.items():
            (exact / name).parent.mkdir(parents=True, exist_ok=True)
            model = graph.load(write_exact(root / name, exact))
            exposed[component] = expose_quantized_inputs(model)
            graph.save(model, exact / name)
        with _ObservedProducts(exact, spec, exposed) as runtime:
            observed = [runtime.observe(sample) for sample in samples]
    with OnnxEncoderDecoder(root, spec) as shipped:
        return conclude(reference, table, spec, samples, observed, shipped, TOLERANCE)


class ObservedRuntime(OnnxEncoderDecoder):
    """The runner's own runtime on graphs whose quantised inputs are outputs too."""

    def observe(self, sample: Inputs) -> Observed:
        self._pieces: dict[str, list[NDArray[np.int8]]] = defaultdict(list)
        made = observe(self, self._spec, sample)
        # The decoder's inputs come token by token.
        joined = {module: np.concatenate(pieces, axis=1) for module, pieces in self._pieces.items()}
        return replace(made, quantized=joined)

    def _run(self, component: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = super()._run(component, inputs)
        for module, integers in self._quantized(component, outputs).items():
            self._pieces[module].append(integers)
        return outputs

    def _quantized(self, component: str, outputs: dict[str, Any]) -> dict[str, NDArray[np.int8]]:
        """module → its int8 input"""
        raise NotImplementedError


class _ObservedProducts(ObservedRuntime):
    """Without optimisation, on the graphs of `expose_quantized_inputs`."""

    def __init__(
        self, root: Path, spec: EncoderDecoderSpec, exposed: Mapping[str, Mapping[str, str]]
    ) -> None:
        super().__init__(root, spec, optimize=False, settings=EXACTLY)
        self._exposed = exposed

    def _quantized(self, component: str, outputs: dict[str, Any]) -> dict[str, NDArray[np.int8]]:
        return {
            module: (outputs[name].astype(np.int16) - UINT8_SHIFT).astype(np.int8)
            for module, name in self._exposed[component].items()
        }


def observe(runtime: EncoderDecoder, spec: EncoderDecoderSpec, sample: Inputs) -> Observed:
    """Picture, question and a greedy answer through a runtime."""
    image = runtime.encode_image(pixels_of(sample))
    question = runtime.read_question(image, sample.input_ids)
    fed, logits = [spec.start_token_id], []
    for _ in range(min(TOKENS, spec.max_new_tokens)):
        logits.append(runtime.step(fed[-1]))
        fed.append(int(logits[-1].argmax()))
    return Observed(image, question, tuple(fed[1:]), np.stack(logits))


def check_same_tokens(
    runtime: EncoderDecoder, spec: EncoderDecoderSpec, samples: Sequence[Inputs], seen: Sequence[Observed]
) -> None:
    """Padded to another length, a question gets the same answer; longer ones are passed over.

    Raises ExportError.
    """
    for sample, wanted in zip(samples, seen, strict=True):
        if sample.input_ids.shape[1] > spec.question_lengths[-1]:
            continue
        found = observe(runtime, spec, sample).tokens
        if found != wanted.tokens:
            raise ExportError(
                f"Padded to {spec.question_lengths[-1]} tokens, a question is answered with "
                f"{list(found)}, otherwise with {list(wanted.tokens)}. The padding is not hidden."
            )


def conclude(
    reference: Any,
    table: QuantizedTable,
    spec: EncoderDecoderSpec,
    samples: Sequence[Inputs],
    observed: Sequence[Observed],
    shipped: EncoderDecoder,
    tolerance: float,
) -> AnswerVerification:
    """The exact graphs' answers against torch, the shipped graphs against those; the worst of all samples.

    Raises ExportError when the exact graphs differ by more than `tolerance`, or write other tokens.
    """
    if not samples:
        raise ExportError("Verification needs at least one sample, got none.")
    pairs = list(zip(samples, observed, strict=True))
    compared = [_compare(reference, table, spec, *pair, tolerance) for pair in pairs]
    given = [(observe(shipped, spec, sample), seen) for sample, seen in pairs]
    return AnswerVerification(
        samples=len(pairs),
        tokens=sum(len(seen.tokens) for seen in observed),
        vision_difference=max(one.vision for one in compared),
        question_difference=max(one.question for one in compared),
        logits_difference=max(one.logits for one in compared),
        rounding_ties=sum(one.ties for one in compared),
        shipped_vision_difference=max(relative(one.image, seen.image) for one, seen in given),
        shipped_logits_difference=max(relative(one.logits[0], seen.logits[0]) for one, seen in given),
        shipped_max_abs_logit_difference=max(
            float(np.abs(one.logits[0] - seen.logits[0]).max()) for one, seen in given
        ),
        shipped_tokens_equal=float(
            np.mean([np.equal(one.tokens, seen.tokens).mean() for one, seen in given])
        ),
    )


@dataclass(frozen=True)
class _Compared:
    vision: float
    question: float
    logits: float
    ties: int


def _compare(
    reference: Any,
    table: QuantizedTable,
    spec: EncoderDecoderSpec,
    sample: Inputs,
    seen: Observed,
    tolerance: float,
) -> _Compared:
    """Torch's components on what the graph's gave to each other: each part is judged alone."""
    fed = torch.tensor([[spec.start_token_id, *seen.tokens[:-1]]])
    with torch.inference_mode(), given_ties(reference, table, seen.quantized) as ties:
        image = reference.vision_model(torch.from_numpy(pixels_of(sample))).last_hidden_state
        question = reference.text_encoder(
            input_ids=torch.from_numpy(sample.input_ids), encoder_hidden_states=torch.from_numpy(seen.image)
        ).last_hidden_state
        answer = reference.text_decoder(
            input_ids=fed, encoder_hidden_states=torch.from_numpy(seen.question), use_cache=False
        )
    logits = answer.logits[0].numpy()  # [tokens, V]
    found = _Compared(
        vision=difference("image states", seen.image, image.numpy(), tolerance),
        question=difference("question states", seen.question, question.numpy(), tolerance),
        logits=difference("logits", seen.logits, logits, tolerance),
        ties=ties[0],
    )
    tokens = tuple(int(token) for token in logits.argmax(-1))
    if tokens != seen.tokens:
        raise ExportError(f"Greedy tokens differ: torch {list(tokens)}, graph {list(seen.tokens)}.")
    return found
