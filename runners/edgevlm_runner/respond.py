"""A bundle that answers: its runtime, tokenizer and prompt in one place."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Callable, List, Optional, Sequence, Tuple, Type, Union

import numpy as np
from PIL import Image

from edgevlm_runner import abstain, runtimes
from edgevlm_runner.bundle import Bundle
from edgevlm_runner.contract import Answer, DualEncoderSpec, Item
from edgevlm_runner.errors import BundleError
from edgevlm_runner.features import Features, gather, watched
from edgevlm_runner.generate import Generation, stream
from edgevlm_runner.inputs import Inputs, from_item, from_picture, load_tokenizer, picture_of
from edgevlm_runner.preprocess import frame, load_image
from edgevlm_runner.zero_shot import choose, embed_classes

LOWEST_PROBABILITY = 1e-10


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer and what it took. Times in milliseconds.

    A classifier's class is its only token: first token and whole answer take the same time.
    """

    text: str
    token_ids: Tuple[int, ...]
    token_logprobs: Tuple[float, ...]
    finished: bool
    preprocess_ms: float
    vision_ms: float
    time_to_first_token_ms: float
    """From the encoded picture file to the first token, preprocessing included."""
    per_token_ms: Tuple[float, ...]
    """Each token after the first."""
    latency_ms: float
    """From the encoded picture file to the last token, and to the Selector's score where there is one."""
    selector: Optional[float] = None
    """How right the Selector takes the answer to be, in [0, 1]; None without one."""
    abstained: bool = False
    """Whether the bundle withholds this answer."""
    scores: Tuple[float, ...] = ()
    """As `Answer.scores`."""

    @property
    def confidence(self) -> float:
        """Geometric mean of the token probabilities, end-of-sequence included; 0 without tokens."""
        if not self.token_logprobs:
            return 0.0
        floor = math.log(LOWEST_PROBABILITY)
        return math.exp(sum(max(one, floor) for one in self.token_logprobs) / len(self.token_logprobs))


def usable_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def respondent(
    bundle: Bundle, threads: Optional[int] = None, emulate: bool = False
) -> Union[Respondent, ZeroShot]:
    """What answers for this bundle's kind of model."""
    kind = ZeroShot if isinstance(bundle.model, DualEncoderSpec) else Respondent
    return kind(bundle, threads, emulate)


class _Loaded:
    """What both kinds have in common: a bundle, its target's settings, and graphs to free in the end."""

    def __init__(self, bundle: Bundle, threads: Optional[int], emulate: bool) -> None:
        """emulate: see `edgevlm_runner.runtimes.load`."""
        self._bundle = bundle
        self.emulated = emulate and bundle.model.runtime == "tensorrt"
        self._tokenizer = load_tokenizer(bundle.path("tokenizer/tokenizer.json"))
        self._seed = int(bundle.manifest["seeds"]["evaluation"])
        target = json.loads(bundle.path("target.json").read_text(encoding="utf-8"))
        # The target's threads are its own; more than this machine has would only wait for each other.
        self.threads = threads or (usable_cores() if self.emulated else int(target["threads"]))
        self._accelerator = str(target["accelerator"])


class Respondent(_Loaded):
    """Holds the loaded graphs of one bundle; use it as a context manager.

    Raises RuntimeUnavailable when the bundle's runtime is not installed, ExecutionError when it
    refuses a graph.
    """

    def __init__(self, bundle: Bundle, threads: Optional[int] = None, emulate: bool = False) -> None:
        super().__init__(bundle, threads, emulate)
        assert not isinstance(bundle.model, DualEncoderSpec)
        self._spec = bundle.model
        self.runtime = runtimes.load(bundle.root, self._spec, self.threads, self._accelerator, emulate)
        self._selector: Optional[abstain.Selector] = None
        if bundle.certainty.graph:
            self._selector = abstain.load(bundle.path(bundle.certainty.graph), bundle.model.runtime)

    def __enter__(self) -> Respondent:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if self._selector is not None:
            self._selector.close()
        self.runtime.close()

    def ask(self, question: str, image: Optional[Path], on_text: Callable[[str], None]) -> Reply:
        """Answer one question; `on_text` gets the answer piece by piece."""
        began = time.perf_counter()
        picture = load_image(image) if image is not None else None
        inputs = from_picture(picture, question, self._spec, self._tokenizer)
        return self._reply(inputs, began, on_text)

    def answer(self, item: Item) -> Tuple[Answer, Reply]:
        """Answer one item of the bundle, on corrupted pixels where its condition says so."""
        began = time.perf_counter()
        inputs = from_item(item, self._bundle.root, self._seed, self._spec, self._tokenizer)
        reply = self._reply(inputs, began, lambda _: None)
        said = (reply.text, reply.token_ids, reply.token_logprobs, reply.finished, reply.selector)
        return Answer(item.id, *said), reply

    def _reply(self, inputs: Inputs, began: float, on_text: Callable[[str], None]) -> Reply:
        spec = self._spec
        preprocess_ms = 1e3 * (time.perf_counter() - began)
        tokens: List[int] = []
        shown = ""
        steps = stream(self.runtime, spec, inputs.pixel_values, inputs.input_ids, inputs.size)
        while True:
            try:
                tokens.append(next(steps).id)
            except StopIteration as end:
                made: Generation = end.value
                break
            shown = self._show(tokens, shown, on_text)
        times = made.timings
        first_ms = preprocess_ms + 1e3 * times.time_to_first_token_seconds
        before = time.perf_counter()
        selector = self._judged(made)
        selecting_ms = 1e3 * (time.perf_counter() - before)
        return Reply(
            text=self._tokenizer.decode(tokens, skip_special_tokens=True).strip(),
            token_ids=made.token_ids,
            token_logprobs=made.token_logprobs,
            finished=made.finished,
            preprocess_ms=preprocess_ms,
            vision_ms=1e3 * times.vision_seconds,
            time_to_first_token_ms=first_ms,
            per_token_ms=tuple(1e3 * one for one in times.token_seconds),
            latency_ms=preprocess_ms + 1e3 * times.total_seconds + selecting_ms,
            selector=selector,
            abstained=abstain.abstains(self._bundle.certainty, made.token_logprobs, selector),
        )

    def _judged(self, made: Generation) -> Optional[float]:
        """The Selector's score of an answer."""
        if self._selector is None:
            return None
        if made.pooled is None:
            raise BundleError(
                f"{self._bundle.root}: has a selector, but its decoder gives no hidden "
                "state. Compile it again."
            )
        return self._selector(abstain.features(made.pooled, made.token_logprobs))

    def _show(self, tokens: List[int], shown: str, on_text: Callable[[str], None]) -> str:
        """The text so far. A character may span tokens, so a cut one waits for its rest."""
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        if not text.endswith("\ufffd") and len(text) > len(shown):
            on_text(text[len(shown) :] if shown else text.lstrip())
            return text
        return shown


class ZeroShot(_Loaded):
    """The same for a dual encoder: the class whose sentences lie nearest to the picture.

    The classes are embedded once, while it is made, by the text encoder that the bundle ships. Its other
    errors are Respondent's.
    """

    def __init__(self, bundle: Bundle, threads: Optional[int] = None, emulate: bool = False) -> None:
        super().__init__(bundle, threads, emulate)
        assert isinstance(bundle.model, DualEncoderSpec)
        self._spec = bundle.model
        self.runtime = runtimes.load_encoders(
            bundle.root, self._spec, self.threads, self._accelerator, emulate
        )
        self.classes = self._spec.text.classes
        self._embeds = self._embed(self.classes)

    def __enter__(self) -> ZeroShot:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.runtime.close()

    def choose_among(self, classes: Sequence[str]) -> None:
        """Other classes than the bundle's own from now on. Raises PromptError for one that is too long."""
        self._embeds = self._embed(classes)
        self.classes = tuple(classes)

    def ask(self, image: Path) -> Reply:
        """Classify one picture."""
        began = time.perf_counter()
        return self._reply(load_image(image), began)

    def answer(self, item: Item) -> Tuple[Answer, Reply]:
        """Classify the picture of one item, corrupted where its condition says so."""
        began = time.perf_counter()
        picture = picture_of(item, self._bundle.root, self._seed)
        if picture is None:
            raise BundleError(f"item {item.id} has no picture to classify. Compile the bundle again.")
        reply = self._reply(picture, began)
        said = (reply.text, reply.token_ids, reply.token_logprobs, reply.finished)
        return Answer(item.id, *said, scores=reply.scores), reply

    def features(self, items: Sequence[Item]) -> Features:
        """Embeddings of the bundle's watched items, their captions and the classes."""

        def encode_item(item: Item) -> np.ndarray:
            picture = picture_of(item, self._bundle.root, self._seed)
            assert picture is not None, "it was classified before"
            embeds: np.ndarray = self.runtime.encode_image(frame(picture, self._spec.image))[0]
            return embeds

        kept = watched(items, self._spec)
        return gather(kept, encode_item, self.runtime.encode_text, self._spec, self._tokenizer)

    def _embed(self, classes: Sequence[str]) -> np.ndarray:
        return embed_classes(self.runtime.encode_text, classes, self._spec.text, self._tokenizer)

    def _reply(self, picture: Image.Image, began: float) -> Reply:
        pixel_values = frame(picture, self._spec.image)
        preprocessed = time.perf_counter()
        embed = self.runtime.encode_image(pixel_values)[0]
        encoded = time.perf_counter()
        choice = choose(embed, self._embeds, self._spec)
        latency_ms = 1e3 * (time.perf_counter() - began)
        return Reply(
            text=self.classes[choice.place],
            token_ids=(choice.place,),
            token_logprobs=(choice.log_probability,),
            finished=True,
            preprocess_ms=1e3 * (preprocessed - began),
            vision_ms=1e3 * (encoded - preprocessed),
            time_to_first_token_ms=latency_ms,
            per_token_ms=(),
            latency_ms=latency_ms,
            abstained=abstain.abstains(self._bundle.certainty, (choice.log_probability,), None),
            scores=choice.scores,
        )
