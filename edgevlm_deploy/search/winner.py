"""A candidate as a recipe: components, and as few overrides as say the same."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import yaml

from edgevlm_deploy.errors import PlanError
from edgevlm_deploy.plan import resolve
from edgevlm_deploy.recipe import Algorithm, ModuleOverride, Precision, Recipe, Scheme
from edgevlm_deploy.search.space import Block, Candidate, Space
from edgevlm_deploy.source import SourceModel
from edgevlm_deploy.target import Target

Choice = tuple[Scheme, Algorithm]
_NUMBER = re.compile(r"\.(\d+)\.")
WIDTH = 110


def recipe(
    base: Recipe,
    name: str,
    description: str,
    space: Space,
    candidate: Candidate,
    source: SourceModel,
    target: Target,
) -> Recipe:
    """`base` with the candidate's precision and what it sees of a picture; everything else stays.

    Raises PlanError when the patterns do not resolve to the candidate, which would be a defect.
    """
    chosen = {
        block.name: (scheme, block.algorithm(scheme, candidate.algorithm))
        for block, scheme in zip(space.blocks, candidate.schemes, strict=True)
    }
    components, overrides = {}, []
    for component in dict.fromkeys(block.component for block in space.blocks):
        blocks = [block for block in space.blocks if block.component is component]
        usual = _most_bytes(blocks, chosen)
        if usual[0] is not Scheme.FP16:
            components[component] = Precision(scheme=usual[0], algorithm=usual[1])
        overrides += _overrides([block for block in blocks if chosen[block.name] != usual], blocks, chosen)
    made = base.model_copy(
        update={
            "name": name,
            "description": description,
            "components": components,
            "modules": tuple(overrides),
            "image": candidate.image,
        }
    )
    if dict(resolve(made, target, source.modules).request) != space.request(candidate):
        raise PlanError(f"{name}: the recipe's patterns do not give the candidate's precision.")
    return made


def _most_bytes(blocks: Sequence[Block], chosen: dict[str, Choice]) -> Choice:
    """What most of the component's weights have, by their size in fp16."""
    weights: Counter[Choice] = Counter()
    for block in blocks:
        weights[chosen[block.name]] += block.sizes[Scheme.FP16]
    return weights.most_common(1)[0][0]


def _overrides(
    different: Sequence[Block], siblings: Sequence[Block], chosen: dict[str, Choice]
) -> list[ModuleOverride]:
    """One per kind of block and choice: the layers' numbers become `*` or a set of digits."""
    layers: dict[str, set[str]] = defaultdict(set)
    for block in siblings:
        kind, number = _kind(block.name)
        layers[kind].add(number)
    groups: dict[tuple[str, Choice], list[str]] = defaultdict(list)
    for block in different:
        kind, number = _kind(block.name)
        groups[kind, chosen[block.name]].append(number)
    found = []
    for (kind, (scheme, algorithm)), numbers in groups.items():
        for part in ["*"] if set(numbers) == layers[kind] and numbers != [""] else _digit_sets(numbers):
            pattern = kind.format(part) + ("" if numbers == [""] else ".*")
            found.append(ModuleOverride(pattern=pattern, scheme=scheme, algorithm=algorithm))
    return found


def _kind(name: str) -> tuple[str, str]:
    """("model.layers.{}.mlp", "3"); a block in no layer is its own kind."""
    match = _NUMBER.search(name)
    if match is None:
        return name, ""
    return f"{name[: match.start(1)]}{{}}{name[match.end(1) :]}", match.group(1)


def _digit_sets(numbers: Sequence[str]) -> list[str]:
    """3, 5, 12, 13 → "[35]", "1[23]"."""
    endings: dict[str, list[str]] = defaultdict(list)
    for number in sorted(numbers, key=lambda one: (len(one), one)):
        endings[number[:-1]].append(number[-1:])
    return [
        tens + (units[0] if len(units) == 1 else f"[{''.join(units)}]") for tens, units in endings.items()
    ]


def text(made: Recipe, found_by: str) -> str:
    """YAML with a comment that says where it comes from; what equals a default is left out."""
    data = made.model_dump(mode="json", exclude_defaults=True)
    order = [*(key for key in data if key != "gates"), "gates"]
    body = yaml.safe_dump(
        {key: data[key] for key in order},
        sort_keys=False,
        allow_unicode=True,
        width=WIDTH,
        default_flow_style=None,
    )
    comment = "".join(f"# {line}\n" for line in found_by.splitlines())
    return comment + body
