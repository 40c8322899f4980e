"""What an engine will need at least, estimated from the graph alone.

    estimate = weights at their stored precision
             + inputs and outputs at the profiles' largest shapes (key and value cache included)
             + the largest sum of activations that are alive at the same time, in the order of the file

The weights are held once. What the graph cannot tell is left out: kernels and their workspace, the CUDA
context, and the build, which needs several times the weights. Fused operators need less for activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil

import onnx_ir as ir

from edgevlm_deploy.lint.subject import Finding, Subject, error, infer, tensor, warning


@dataclass(frozen=True)
class Memory:
    """Bytes; `unknown` counts the tensors without an inferred size, which make the sum a lower bound."""

    weights_bytes: int
    inputs_outputs_bytes: int
    activations_bytes: int
    unknown: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.inputs_outputs_bytes + self.activations_bytes


def estimate(subject: Subject) -> Memory:
    graph = _at_largest_shapes(subject).graph
    ends = [*graph.inputs, *graph.outputs]
    weights = {id(value): value for value in graph.initializers.values()}
    ends = [value for value in ends if id(value) not in weights]
    sizes = {id(value): _bytes(value) for node in graph for value in node.outputs}
    constants = [one.nbytes for node in graph if (one := tensor(node.outputs[0])) is not None]
    return Memory(
        weights_bytes=sum(_bytes(value) or 0 for value in weights.values()) + sum(constants),
        inputs_outputs_bytes=sum(_bytes(value) or 0 for value in ends),
        activations_bytes=_peak(graph, sizes),
        unknown=_unknown([*sizes.values(), *map(_bytes, graph.inputs)]),
    )


def judge(subject: Subject, needed: Memory) -> Iterator[Finding]:
    """The estimate against the target's memory budget."""
    budget = subject.target.budgets.peak_rss_bytes or subject.target.memory_bytes
    where = subject.path.name
    if needed.unknown:
        yield warning(
            "memory",
            where,
            f"{needed.unknown} tensors have no size that ONNX can infer; the estimate of "
            f"{_megabytes(needed.total_bytes)} is a lower bound. Give a profile for every dynamic input; "
            "sizes behind unknown operators stay open.",
        )
    if needed.total_bytes > budget:
        yield error(
            "memory",
            where,
            f"about {_megabytes(needed.total_bytes)}: weights {_megabytes(needed.weights_bytes)}, inputs and "
            f"outputs {_megabytes(needed.inputs_outputs_bytes)}, activations "
            f"{_megabytes(needed.activations_bytes)}; {subject.target.name} leaves {_megabytes(budget)}. Use "
            "fewer bits, smaller profiles or a larger board.",
        )


def _at_largest_shapes(subject: Subject) -> ir.Model:
    """A copy whose inputs have the profiles' largest shapes; what follows from them is inferred anew."""
    if not subject.profiles:
        return subject.model
    model = subject.model.clone()
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    for value in model.graph.inputs:
        profile = subject.profiles.get(str(value.name))
        if profile is not None and value.shape is not None and len(profile.max) == len(value.shape):
            value.shape = ir.Shape(profile.max)
    return infer(model)


def _peak(graph: ir.Graph, sizes: dict[int, int | None]) -> int:
    """Largest sum of activations alive together; what is computed from constants alone counts as weights."""
    nodes = list(graph)
    outputs = {id(value) for value in graph.outputs}
    constant = {id(value) for value in graph.initializers.values()}
    last_use: dict[int, int] = {}
    for index, node in enumerate(nodes):
        for value in node.inputs:
            if value is not None:
                last_use[id(value)] = index
        if all(value is None or id(value) in constant for value in node.inputs):
            constant.update(id(value) for value in node.outputs)
    alive = peak = 0
    for index, node in enumerate(nodes):
        made = [value for value in node.outputs if id(value) not in outputs | constant]
        alive += sum(sizes[id(value)] or 0 for value in made)
        peak = max(peak, alive)
        gone = {id(value) for value in node.inputs if value is not None and last_use[id(value)] == index}
        gone |= {id(value) for value in made if id(value) not in last_use}
        alive -= sum(sizes.get(one) or 0 for one in gone - outputs - constant)
    return peak


def _bytes(value: ir.Value) -> int | None:
    """Size of a tensor, None when its shape or type is not known, 0 for an output that is left out."""
    if not value.name:
        return 0
    if value.const_value is not None:
        return int(value.const_value.nbytes)
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        return None
    count = 1
    for size in value.shape:
        count *= int(size)
    return ceil(count * float(value.dtype.itemsize))


def _unknown(sizes: Iterable[int | None]) -> int:
    return sum(size is None for size in sizes)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
