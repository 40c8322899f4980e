"""Rules on shapes: an engine is built for ranges that are known before it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir

from edgevlm_deploy.lint.subject import Finding, Profile, Subject, error, is_onnx, name_of, tensor

_DATA_DEPENDENT = ("NonZero", "NonMaxSuppression")
"""Known to the parser; others of their kind are refused as operators already."""


def data_dependent(subject: Subject) -> Iterator[Finding]:
    """Shapes that follow from values: buffers could not be allocated before the engine runs."""
    for node in subject.nodes:
        what = None
        if is_onnx(node, *_DATA_DEPENDENT):
            what = f"{node.op_type}: the size of its output depends on values"
        elif is_onnx(node, "TopK") and len(node.inputs) > 1 and tensor(node.inputs[1]) is None:
            what = "TopK with a computed k"
        if what:
            yield error(
                "data_dependent",
                name_of(node),
                f"{what}; expected shapes that follow from the shapes of the inputs alone. Use a mask, or a "
                "constant size.",
            )


def by_symbol(model: ir.Model, profiles: Mapping[str, Profile]) -> dict[str, Profile]:
    """Ranges of symbols (`tokens` = 1:8:512) written out for the inputs made of them; other ranges stay."""
    inputs = {str(one.name): one for one in model.graph.inputs if one.shape is not None}
    symbols = {_symbol(size) for value in inputs.values() for size in value.shape} - {None} - set(inputs)
    ranges = {name: one for name, one in profiles.items() if name in symbols and len(one.opt) == 1}
    found = {name: one for name, one in profiles.items() if name not in ranges}
    for name, value in inputs.items():
        mine = {_symbol(size) for size in value.shape} - {None}
        if name not in found and mine and mine <= set(ranges) and None not in map(_known, value.shape):
            found[name] = Profile(*(_sizes(value.shape, ranges, end) for end in ("min", "opt", "max")))
    return found


def _sizes(shape: ir.Shape, ranges: Mapping[str, Profile], end: str) -> tuple[int, ...]:
    return tuple(
        size if isinstance(size, int) else int(getattr(ranges[str(size.value)], end)[0]) for size in shape
    )


def _symbol(size: int | ir.SymbolicDim) -> str | None:
    return None if isinstance(size, int) or size.value is None else str(size.value)


def _known(size: int | ir.SymbolicDim) -> int | str | None:
    """A size or its symbol; None for a size without a name."""
    return size if isinstance(size, int) else _symbol(size)


def profiles(subject: Subject) -> Iterator[Finding]:
    """Every dynamic input has a range, every range fits its input, equal symbols have equal ranges."""
    inputs = {str(one.name): one for one in subject.model.graph.inputs if one.const_value is None}
    for name in sorted(set(subject.profiles) - set(inputs)):
        yield error(
            "profiles", name, f"a profile for {name}, which is no input; the inputs are {', '.join(inputs)}."
        )
    fitting = {}
    for name, value in inputs.items():
        profile = subject.profiles.get(name)
        if sentence := _problem(name, value.shape, profile):
            yield error("profiles", name, sentence)
        elif profile is not None:
            fitting[name] = profile
    yield from _equal_symbols(inputs, fitting)


def _problem(name: str, shape: ir.Shape | None, profile: Profile | None) -> str | None:
    if shape is None:
        return "an input of unknown rank; expected a rank, dynamic sizes may be symbols."
    if profile is not None:
        return _misfit(shape, profile)
    if shape.is_static():
        return None
    symbols = sorted({symbol for size in shape if (symbol := _symbol(size))})
    example = " ".join(f"--profile {one}=1:1:8" for one in symbols) or f"--profile {name}={_example(shape)}"
    return (
        f"dynamic shape {_text(shape)} without an optimisation profile; expected its smallest, usual and "
        f"largest shape. Add for example {example}."
    )


def _equal_symbols(inputs: Mapping[str, ir.Value], profiles: Mapping[str, Profile]) -> Iterator[Finding]:
    ranges: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, profile in profiles.items():
        for size, *here in zip(inputs[name].shape, profile.min, profile.opt, profile.max, strict=True):
            symbol = _symbol(size)
            if symbol is None:
                continue
            other, there = ranges.setdefault(symbol, (name, tuple(here)))
            if tuple(here) != there:
                yield error(
                    "profiles",
                    name,
                    f"{symbol} is {_colons(here)} here and {_colons(there)} in {other}; the same symbol "
                    "means the same size. Give both the same range, or export two symbols.",
                )


def _misfit(shape: ir.Shape, profile: Profile) -> str | None:
    asked = f"profile {_colons(map(_times, (profile.min, profile.opt, profile.max)))}"
    if {len(profile.min), len(profile.opt), len(profile.max)} != {len(shape)}:
        return (
            f"{asked} for an input of shape {_text(shape)}; expected {len(shape)} sizes in each of the three."
        )
    for size, low, usual, high in zip(shape, profile.min, profile.opt, profile.max, strict=True):
        if not 0 <= low <= usual <= high or high == 0:
            return f"{asked}: {low}, {usual}, {high} is not min ≤ opt ≤ max with a positive max."
        if isinstance(size, int) and {low, usual, high} != {size}:
            return f"{asked} for an input of shape {_text(shape)}; the size {size} is fixed in the graph."
    return None


def _text(shape: ir.Shape) -> str:
    return f"[{', '.join(str(_known(size) or '?') for size in shape)}]"


def _example(shape: ir.Shape) -> str:
    low, high = ([size if isinstance(size, int) else end for size in shape] for end in (1, 8))
    return _colons(map(_times, (low, low, high)))


def _times(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def _colons(parts: Iterable[object]) -> str:
    return ":".join(map(str, parts))
