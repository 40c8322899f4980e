"""What can be chosen: for each block of modules a scheme, for the whole model an algorithm and what it sees
of a picture.

A block is the attention or the MLP of one layer, or a module that is in no layer. Modules of a block stay
together: a norm in front of them is folded for all, and the space stays small enough to be searched.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgevlm_deploy.errors import ExportError, PlanError
from edgevlm_deploy.export import footprint
from edgevlm_deploy.plan import resolve
from edgevlm_deploy.quantize.request import ModuleRequest, check_columns
from edgevlm_deploy.quantize.schemes import WeightFormat
from edgevlm_deploy.recipe import Algorithm, Component, Image, Precision, Recipe, Scheme
from edgevlm_deploy.search.cost import Cost
from edgevlm_deploy.source import SourceModel
from edgevlm_deploy.target import Target

_LAYER_PART = re.compile(r"^(.*?\.\d+\.[^.]+)\.")
FP16_BITS = 16


@dataclass(frozen=True)
class Block:
    """Modules that share a scheme.

    requests   scheme × algorithm → what every module of the block is then asked for; fp16 is no key
    sizes      scheme → bytes of the block's weights in the backend's file, rounded to nearest
    stored     the same for each of `requests`: zero-points come on top for some algorithms
    """

    name: str
    component: Component
    modules: tuple[str, ...]
    requests: Mapping[tuple[Scheme, Algorithm], ModuleRequest]
    sizes: Mapping[Scheme, int]
    stored: Mapping[tuple[Scheme, Algorithm], int]

    def size(self, scheme: Scheme, wanted: Algorithm) -> int:
        """Bytes with `wanted` where it is offered."""
        return self.stored.get((scheme, self.algorithm(scheme, wanted)), self.sizes[scheme])

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """Every scheme that the target executes here, smallest first; more bits first among equals."""
        return tuple(sorted(self.sizes, key=lambda one: (self.sizes[one], -self.bits(one))))

    def bits(self, scheme: Scheme) -> int:
        return FP16_BITS if scheme is Scheme.FP16 else self.requests[scheme, Algorithm.RTN].format.bits

    def algorithm(self, scheme: Scheme, wanted: Algorithm) -> Algorithm:
        """`wanted` where it is offered, else rounding to nearest."""
        return wanted if (scheme, wanted) in self.requests else Algorithm.RTN

    @property
    def choices(self) -> tuple[Scheme, ...]:
        """The schemes without those that another one beats: no larger, no coarser, inputs treated alike."""
        return tuple(
            one for one in self.schemes if not any(self._beats(other, one) for other in self.schemes)
        )

    def _beats(self, other: Scheme, one: Scheme) -> bool:
        if other is one or Scheme.FP16 in (other, one) or self.sizes[other] > self.sizes[one]:
            return False
        better, worse = (self.requests[scheme, Algorithm.RTN].format for scheme in (other, one))
        return _is_as_fine(better, worse) and not _is_as_fine(worse, better)


def _is_as_fine(one: WeightFormat, other: WeightFormat) -> bool:
    whole = float("inf")
    inputs = [(each.static_activation, each.graph_activation_bits) for each in (one, other)]
    return (
        inputs[0] == inputs[1] and one.bits >= other.bits and (one.group or whole) <= (other.group or whole)
    )


@dataclass(frozen=True)
class Candidate:
    """One way to compile the model: `schemes` in the order of the space's blocks."""

    algorithm: Algorithm
    schemes: tuple[Scheme, ...]
    image: Image = field(default_factory=Image)


@dataclass(frozen=True)
class Space:
    blocks: tuple[Block, ...]
    algorithms: tuple[Algorithm, ...]
    rest_bytes: int
    """What is never quantised: norms, biases, patch embedding; in fp16."""
    images: Mapping[Image, Cost] = field(default_factory=lambda: {Image(): Cost()})
    """What can be seen of a picture, and what it costs; uniform candidates take the first."""

    @property
    def image(self) -> Image:
        return next(iter(self.images))

    def cost(self, candidate: Candidate) -> tuple[int, int]:
        """What is made small: bytes of memory, and arithmetic between equals."""
        return self.memory_bytes(candidate), self.images[candidate.image].first_token_macs

    def memory_bytes(self, candidate: Candidate) -> int:
        """Weights, and the key-value cache of the longest question."""
        return self.weight_bytes(candidate) + self.images[candidate.image].cache_bytes

    def weight_bytes(self, candidate: Candidate) -> int:
        return self.rest_bytes + sum(
            block.size(scheme, candidate.algorithm)
            for block, scheme in zip(self.blocks, candidate.schemes, strict=True)
        )

    def component_bytes(self, candidate: Candidate, *components: Component) -> int:
        return sum(
            block.size(scheme, candidate.algorithm)
            for block, scheme in zip(self.blocks, candidate.schemes, strict=True)
            if block.component in components
        )

    def request(self, candidate: Candidate) -> dict[str, ModuleRequest]:
        """Precision per module, as `plan.resolve` would spell it out."""
        return {
            name: block.requests[scheme, block.algorithm(scheme, candidate.algorithm)]
            for block, scheme in zip(self.blocks, candidate.schemes, strict=True)
            if scheme is not Scheme.FP16
            for name in block.modules
        }

    def uniform(self, scheme: Scheme, algorithm: Algorithm) -> Candidate:
        """One scheme everywhere; a block that has no use for it takes the smallest with at least its bits."""
        bits = next(block.bits(scheme) for block in self.blocks if scheme in block.choices)

        def nearest(block: Block) -> Scheme:
            if scheme in block.choices:
                return scheme
            return next(one for one in block.choices if block.bits(one) >= bits)

        return self.canonical(Candidate(algorithm, tuple(map(nearest, self.blocks)), self.image))

    def uniforms(self) -> tuple[Candidate, ...]:
        """Every scheme × algorithm, without repetitions; smallest first."""
        schemes = [one for one in Scheme if any(one in block.choices for block in self.blocks)]
        made = dict.fromkeys(self.uniform(one, algorithm) for one in schemes for algorithm in self.algorithms)
        return tuple(sorted(made, key=self.weight_bytes))

    def canonical(self, candidate: Candidate) -> Candidate:
        """With algorithm rtn when no block takes another one, so that equal candidates are one."""
        searched = any(
            block.algorithm(scheme, candidate.algorithm) is candidate.algorithm
            for block, scheme in zip(self.blocks, candidate.schemes, strict=True)
        )
        return candidate if searched else dataclasses.replace(candidate, algorithm=Algorithm.RTN)


def build(source: SourceModel, recipe: Recipe, target: Target, algorithms: Sequence[Algorithm]) -> Space:
    """Every block with what the target executes, the quantiser offers and the columns allow.

    Raises PlanError when an algorithm is offered nowhere.
    """
    blocks = []
    for component_name, names in source.modules.items():
        members: dict[str, list[str]] = {}
        for name in names:
            match = _LAYER_PART.match(name)
            members.setdefault(match.group(1) if match else name, []).append(name)
        component = Component(component_name)
        offered = {
            (scheme, algorithm): request
            for scheme in Scheme
            for algorithm in dict.fromkeys((Algorithm.RTN, *algorithms))
            if (request := _offered(source, recipe, target, component, scheme, algorithm)) is not None
        }
        blocks += [_block(source, target, component, key, tuple(of), offered) for key, of in members.items()]
    for algorithm in algorithms:
        if not any(algorithm is one for block in blocks for _, one in block.requests):
            raise PlanError(
                f"search: {algorithm.value} is offered for no module of this model on {target.name}; "
                "name other algorithms."
            )
    matrices = sum(rows * columns for rows, columns in _matrices(source))
    rest = footprint.HALF * max(source.parameters - matrices, 0)
    return Space(tuple(blocks), tuple(dict.fromkeys((Algorithm.RTN, *algorithms))), rest)


def _matrices(source: SourceModel) -> list[tuple[int, int]]:
    """Shapes of all weight matrices; a tied head is stored once in the checkpoint."""
    tied = source.modules.get(Component.HEAD.value, ()) if source.tied_head else ()
    return [source.shapes[name] for names in source.modules.values() for name in names if name not in tied]


def _offered(
    source: SourceModel,
    recipe: Recipe,
    target: Target,
    component: Component,
    scheme: Scheme,
    algorithm: Algorithm,
) -> ModuleRequest | None:
    if scheme is Scheme.FP16:
        return None
    wanted = Precision(scheme=scheme, algorithm=algorithm)
    alone = recipe.model_copy(update={"components": {component: wanted}, "modules": ()})
    try:
        request = resolve(alone, target, source.modules).request
    except PlanError:
        return None
    return next(iter(request.values()), None)


def _block(
    source: SourceModel,
    target: Target,
    component: Component,
    name: str,
    modules: tuple[str, ...],
    offered: Mapping[tuple[Scheme, Algorithm], ModuleRequest],
) -> Block:
    def size(stored: WeightFormat | None) -> int:
        shapes = (source.shapes[module] for module in modules)
        return sum(footprint.weight_bytes(*shape, stored, component, target.backend) for shape in shapes)

    requests, stored = {}, {}
    for (scheme, algorithm), request in offered.items():
        try:
            check_columns(
                dict.fromkeys(modules, request), {module: source.shapes[module][1] for module in modules}
            )
            stored[scheme, algorithm] = size(request.format)
        except (PlanError, ExportError):
            continue
        requests[scheme, algorithm] = request
    nearest = {scheme: bytes_ for (scheme, one), bytes_ in stored.items() if one is Algorithm.RTN}
    return Block(name, component, modules, requests, {Scheme.FP16: size(None), **nearest}, stored)
