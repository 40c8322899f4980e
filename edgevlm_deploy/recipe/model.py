"""What the compiled model does with a picture and a question, and when it keeps its answer to itself."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field, model_validator

from edgevlm_deploy.config import Frozen
from edgevlm_deploy.recipe.evaluation import Corruption

MOST_TILES = 64
"""Of a picture, whatever the model."""


class ReductionMethod(str, Enum):
    """How image tokens are taken away."""

    FASTV = "fastv"
    VISIONZIP = "visionzip"
    TOME = "tome"


class Reduction(Frozen):
    """Fewer image tokens: a shorter prompt, less prefill, a smaller cache."""

    method: ReductionMethod
    """`visionzip` and `tome` shorten what the vision encoder gives, `fastv` prunes inside the decoder."""
    keep: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of the image tokens that are left."""
    layer: Annotated[int, Field(ge=1)] | None = None
    """FastV prunes in front of this decoder layer, counted from 0; None: 2, as published."""

    @model_validator(mode="after")
    def _only_fastv_has_a_layer(self) -> Reduction:
        if self.method is not ReductionMethod.FASTV and self.layer is not None:
            raise ValueError(f"`layer` belongs to fastv; {self.method.value} has none")
        return self


class Image(Frozen):
    max_tiles: Annotated[int, Field(ge=1, le=MOST_TILES)] | None = None
    """Upper bound on tiles per picture, global view included; None keeps the model's own preprocessing."""
    reference_tiles: Annotated[int, Field(ge=1)] | None = None
    """The reference's bound, so that gates see what fewer tiles cost; None: `max_tiles` bounds both."""
    usual_tiles: Annotated[int, Field(ge=1, le=MOST_TILES)] | None = None
    """Tiles of a usual picture, which engines are tuned for (TensorRT); None: as many as there can be."""
    max_pixels: Annotated[int, Field(ge=1)] | None = None
    """Upper bound on a picture's pixels, of models that keep its own resolution (Qwen-VL): larger ones are
    shrunk. None keeps the model's own bound.
    """
    resolution: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Height and width in pixels that every picture is stretched to, of the same models. LiteRT and TensorRT
    need it, for their graphs have one size; None keeps each picture's own.
    """
    reduction: Reduction | None = None
    """Fewer image tokens than the model makes of a tile; None keeps them all."""

    @model_validator(mode="after")
    def _one_size_has_no_bound(self) -> Image:
        if self.max_pixels is not None and self.resolution is not None:
            raise ValueError("image: give `max_pixels` or `resolution`, not both")
        return self

    @model_validator(mode="after")
    def _the_reference_has_no_fewer_tiles(self) -> Image:
        if self.reference_tiles is not None and (self.max_tiles or MOST_TILES) > self.reference_tiles:
            raise ValueError(
                f"reference_tiles: {self.reference_tiles} for the reference, but max_tiles: "
                f"{self.max_tiles or 'none'} for the artifact; the reference has at least as many"
            )
        return self


class Generation(Frozen):
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 32
    max_context: Annotated[int, Field(ge=16, le=131072)] = 2048
    cache_lengths: tuple[Annotated[int, Field(ge=16)], ...] = ()
    """KV-cache lengths, where graphs have static shapes (LiteRT). Decoding costs what is allocated, so a
    question takes the shortest that holds it. `max_context` is always one; empty: also a quarter of it.
    """
    prefill_lengths: tuple[Annotated[int, Field(ge=2)], ...] = ()
    """Tokens that a static prefill graph takes at once; prompts go in pieces. Empty: 32 and 128."""
    usual_prompt: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a usual prompt with its picture, which engines are tuned for (TensorRT); None: a picture of
    `usual_tiles` and a short question."""

    def static_lengths(self, max_context: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(caches, prefills), ascending, for a context of `max_context` tokens (the model may have cut it).

        A prefill longer than the longest cache, and a cache beyond the context, are left out.
        """
        quarter = (max_context // 4,) if max_context // 4 > max(self.max_new_tokens, 63) else ()
        caches = sorted({n for n in self.cache_lengths or quarter if n < max_context} | {max_context})
        prefills = sorted({n for n in self.prefill_lengths or (32, 128) if n <= max_context})
        return tuple(caches), tuple(prefills)


class ZeroShot(Frozen):
    """What a dual encoder chooses among, in words."""

    classes: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Names as the data has them; empty: the labels in the data, sorted."""
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = ("a photo of a {}",)
    """Sentences with one `{}` where the class goes; their embeddings are averaged."""

    @model_validator(mode="after")
    def _templates_have_a_slot(self) -> ZeroShot:
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"a template has one {{}} where the class goes, got {template!r}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name stands twice")
        return self


class AbstainBy(str, Enum):
    """The score that decides whether an answer is given."""

    SELECTOR = "selector"
    """Two layers trained to tell how right an answer is; they ship in the bundle."""
    MAX_PROB = "maxprob"
    """The product of the token probabilities; nothing is trained."""


class Abstention(Frozen):
    """When an answer is withheld. Everything here is learnt on questions that no metric counts: calibration
    questions, each on its clean picture, and corrupted variants of as many.
    """

    by: AbstainBy = AbstainBy.SELECTOR
    risk: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of wrong answers among those given; the threshold answers as many questions as it allows."""
    cost: Annotated[float, Field(gt=0.0)] | None = None
    """Instead: what a wrong answer costs when a right one earns 1, and the threshold earns the most."""
    questions: Annotated[int, Field(ge=1)] = 2000
    """At most this many; a Selector needs some hundred wrong answers to learn from."""
    corruptions: tuple[Corruption, ...] | None = None
    """Of the variants, at the evaluation's severities; None: the evaluation's own."""

    @model_validator(mode="after")
    def _risk_or_cost(self) -> Abstention:
        if (self.risk is None) == (self.cost is None):
            raise ValueError("abstain: give exactly one of `risk` and `cost`")
        return self
