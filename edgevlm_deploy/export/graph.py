"""Reading and editing an ONNX graph by the names of the source model's modules."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from edgevlm_deploy.errors import ExportError, StorageError
from edgevlm_deploy.export.components import PREFIX

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata key under which torch's exporter writes the module stack of a node, outermost first."""

MICROSOFT = "com.microsoft"

SINGLE_FILE_BYTES = 1_000_000_000
"""Larger graphs keep their weights in a second file: protobuf ends at 2 GiB, and holds them twice."""


def module_of(node: ir.Node) -> str | None:
    """Name in the source model of the module that a node comes from, e.g. "lm_head"."""
    scopes = node.metadata_props.get(SCOPES)
    if scopes is None:
        return None
    stack = ast.literal_eval(scopes)  # [..., module, torch operator]
    return stack[-2].removeprefix(PREFIX) if len(stack) >= 2 else None


def matmuls(model: ir.Model) -> dict[str, ir.Node]:
    """Module name → its MatMul with a constant weight [K, N]."""
    return _by_module(model, "MatMul", operand=1)


def gathers(model: ir.Model) -> dict[str, ir.Node]:
    """Module name → its Gather on a constant matrix [rows, D]."""
    return _by_module(model, "Gather", operand=0)


def _by_module(model: ir.Model, op_type: str, operand: int) -> dict[str, ir.Node]:
    found: dict[str, ir.Node] = {}
    for node in model.graph:
        module = module_of(node)
        if node.op_type != op_type or module is None or constant_shape(node.inputs[operand]) is None:
            continue
        if module in found:
            raise ExportError(f"{module}: traced twice; a module that is called twice is not supported.")
        found[module] = node
    return found


def constant_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Shape of `constant(value)` without reading it."""
    source, steps = _origin(value)
    if source is None:
        return None
    shape = tuple(int(size) for size in source.shape)
    for step in steps:
        if step.op_type == "Transpose":
            shape = tuple(shape[axis] for axis in _permutation(step, len(shape)))
    return shape


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array behind an initializer, also when Casts or Transposes stand between; None if not constant."""
    source, steps = _origin(value)
    if source is None:
        return None
    array: NDArray[Any] = source.numpy()
    for step in steps:
        if step.op_type == "Cast":
            array = array.astype(ir.DataType(step.attributes["to"].as_int()).numpy())
        else:
            array = array.transpose(_permutation(step, array.ndim))
    return array


def _origin(value: ir.Value | None) -> tuple[Any, list[ir.Node]]:
    """(initializer's tensor, nodes from there to `value` in order of execution); (None, []) if computed."""
    steps: list[ir.Node] = []
    while value is not None and value.producer() is not None:
        step = value.producer()
        if step.op_type not in ("Cast", "Transpose"):
            return None, []
        steps.insert(0, step)
        value = step.inputs[0]
    return (None, []) if value is None else (value.const_value, steps)


def _permutation(transpose: ir.Node, rank: int) -> tuple[int, ...]:
    axes = transpose.attributes.get("perm")
    return tuple(reversed(range(rank))) if axes is None else tuple(axes.as_ints())


def add_initializer(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    return _register(model, name, ir.tensor(array, name=name))


def add_lazy_initializer(
    model: ir.Model, name: str, make: Callable[[], NDArray[Any]], dtype: ir.DataType, shape: Sequence[int]
) -> ir.Value:
    """An initializer that is made when the graph is written, and then let go: a large model's weights are
    never in memory together."""

    def tensor() -> ir.Tensor:
        array = make()
        if (array.dtype, array.shape) != (dtype.numpy(), tuple(shape)):
            raise ExportError(f"{name}: {array.dtype} {list(array.shape)}, not {dtype} {list(shape)}.")
        return ir.tensor(array, name=name)

    return _register(model, name, ir.LazyTensor(tensor, dtype=dtype, shape=ir.Shape(shape), name=name))


def _register(model: ir.Model, name: str, tensor: Any) -> ir.Value:
    value = ir.val(name, tensor.dtype, tensor.shape, const_value=tensor)
    model.graph.register_initializer(value)
    return value


def replace(model: ir.Model, old: ir.Node, new: list[ir.Node], last: ir.Node | None = None) -> None:
    """Put `new` in place of the nodes from `old` to `last` (default: `old` alone).

    The last output keeps its name, type and shape; every new node inherits the module scope.
    """
    last = last or old
    before, after = last.outputs[0], new[-1].outputs[0]
    after.type, after.shape = before.type, before.shape
    name = before.name
    for index, node in enumerate(new):
        node.metadata_props[SCOPES] = old.metadata_props[SCOPES]
        node.name = f"{module_of(old)}/{node.op_type}"
        if index < len(new) - 1:
            node.outputs[0].name = f"{module_of(old)}/{node.op_type}/output"
    gone = [old] if last is old else [last, old]
    ir.convenience.replace_nodes_and_values(model.graph, last, gone, new, [before], [after])
    after.name = name


def replace_node(model: ir.Model, old: ir.Node, new: ir.Node) -> None:
    """Put `new` in place of `old`, output by output; names, types and shapes stay."""
    new.metadata_props.update(old.metadata_props)
    new.name = old.name
    names = [value.name for value in old.outputs]
    for before, after in zip(old.outputs, new.outputs, strict=True):
        after.type, after.shape = before.type, before.shape
    ir.convenience.replace_nodes_and_values(model.graph, old, [old], [new], old.outputs, new.outputs)
    for value, name in zip(new.outputs, names, strict=True):
        value.name = name


def save(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """Write the graph; returns its files: one, or two when the weights exceed `SINGLE_FILE_BYTES`.

    Weights of a graph that was read from a disk stay where they are: the new one gets a link to their file.
    Raises StorageError when the disk does not take it.
    """
    tensors = [value.const_value for value in model.graph.initializers.values()]
    data = path.with_name(path.name + ".data")
    try:
        linked = _linked(tensors, path.parent)
        if linked or sum(tensor.nbytes for tensor in tensors) < SINGLE_FILE_BYTES:
            ir.save(model, path)
            return (path, *linked)
        ir.save(model, path, external_data=data.name)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error}). Free space or choose another folder."
        ) from error
    return path, data


def _linked(tensors: Sequence[Any], folder: Path) -> tuple[Path, ...]:
    """Links in `folder` to the files that tensors lie in; () when there is none, or on another disk."""
    sources = {Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    links = []
    for source in sorted(sources):
        link = folder / source.name
        try:
            if not (link.exists() and link.samefile(source)):
                os.link(source, link)
        except OSError:
            return ()
        links.append(link)
    return tuple(links)


def load(path: Path) -> ir.Model:
    """Read a graph back; its tensors stay on disk until they are asked for."""
    try:
        return ir.load(path)
    except Exception as error:  # protobuf's error classes differ between its implementations
        raise ExportError(f"{path}: the written graph cannot be read back ({error}).") from error
