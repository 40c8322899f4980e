"""What a rule sees, what it says, and how a graph by anybody is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevlm_deploy.errors import GraphError, NotFoundError
from edgevlm_deploy.lint.generations import Generation
from edgevlm_deploy.quiet import libraries
from edgevlm_deploy.target import Target

PROTOBUF_BYTES = 2**31 - 1
"""No protobuf message is larger."""

ONNX_DOMAINS = ("", "ai.onnx")


class Severity(str, Enum):
    ERROR = "error"
    """The engine will not be built, or will compute something else than the graph."""
    WARNING = "warning"
    """It may be built; the sentence says what is at stake."""


@dataclass(frozen=True)
class Finding:
    rule: str
    severity: Severity
    where: str
    """Name of a node or a tensor, or of the file."""
    message: str
    """What was found, what was expected, how to mend it."""


@dataclass(frozen=True)
class Profile:
    """Shapes of one input in an optimisation profile; the engine accepts everything from `min` to `max`."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class Subject:
    """A graph on its way to one device."""

    model: ir.Model
    path: Path
    target: Target
    release: str
    """TensorRT on the device, e.g. "10.3"."""
    generation: Generation
    profiles: Mapping[str, Profile]

    @cached_property
    def nodes(self) -> tuple[ir.Node, ...]:
        """Every node, those of subgraphs too."""
        return tuple(self.model.graph.all_nodes())

    @property
    def opset(self) -> int:
        """Opset of the ONNX domain, 0 if the file names none."""
        imports = self.model.opset_imports
        return int(imports.get("", imports.get("ai.onnx", 0)))

    @property
    def compute_capability(self) -> tuple[int, int] | None:
        """(8, 7) from "Tegra Orin (SM 8.7)"."""
        found = re.search(r"SM (\d+)\.(\d+)", self.target.soc)
        return (int(found[1]), int(found[2])) if found else None


Rule = Callable[[Subject], Iterator[Finding]]


def error(rule: str, where: str, message: str) -> Finding:
    return Finding(rule, Severity.ERROR, where, message)


def warning(rule: str, where: str, message: str) -> Finding:
    return Finding(rule, Severity.WARNING, where, message)


def name_of(node: ir.Node) -> str:
    """A node's name; exporters may leave it out, then its first output's."""
    return str(node.name or (node.outputs[0].name if node.outputs else node.op_type))


def is_onnx(node: ir.Node, *op_types: str) -> bool:
    return node.domain in ONNX_DOMAINS and node.op_type in op_types


def tensor(value: ir.Value | None) -> Any | None:
    """The tensor of an initializer or of a Constant node, else None; nothing is read from disk."""
    if value is None:
        return None
    producer = value.producer()
    if producer is None:
        # An initializer that is also an input may be replaced at run time: it is no constant.
        return None if value.is_graph_input() else value.const_value
    if is_onnx(producer, "Constant") and "value" in producer.attributes:
        return producer.attributes["value"].as_tensor()
    return None


def array(value: ir.Value | None) -> NDArray[Any] | None:
    """The numbers of a constant; None when it is computed or, see `external_data`, cannot be read."""
    found = tensor(value)
    if found is None:
        return None
    if isinstance(found, ir.ExternalTensor) and not _is_inside(found):
        return None
    try:
        return np.asarray(found.numpy())
    except (OSError, ValueError):
        return None


def _is_inside(external: ir.ExternalTensor) -> bool:
    folder = Path(str(external.base_dir) or ".").resolve()
    return (folder / str(external.location)).resolve().is_relative_to(folder)


def load(path: Path) -> ir.Model:
    """Read a graph; weights in other files stay there. Types and shapes that follow are filled in.

    Raises NotFoundError when there is no file, GraphError when it holds no graph.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file. Give the path of an ONNX graph.")
    if (size := path.stat().st_size) > PROTOBUF_BYTES:
        raise GraphError(
            f"{path}: {size:,} bytes; a protobuf message, and so an ONNX file, ends at {PROTOBUF_BYTES:,}. "
            "Keep the weights in a second file: onnx.save(model, path, save_as_external_data=True)."
        )
    try:
        with libraries(prints=True):
            model = ir.load(path)
    except Exception as cause:  # protobuf's and onnx-ir's errors have no common base
        raise GraphError(f"{path}: not an ONNX graph, or damaged ({_first_line(cause)}).") from cause
    if not model.graph.outputs or not (len(model.graph) or model.graph.inputs):
        raise GraphError(f"{path}: an ONNX file without nodes and outputs; expected a graph.")
    _check_wiring(model, path)
    return infer(model)


def _check_wiring(model: ir.Model, path: Path) -> None:
    for node in model.graph.all_nodes():
        for value in node.inputs:
            made = value is None or value.producer() or value.is_graph_input() or value.is_initializer()
            if not made:
                reader = f"{value.name} is read by {node.op_type} and made nowhere"
                raise GraphError(f"{path}: {reader}; a whole graph was expected. Export it again.")


def infer(model: ir.Model) -> ir.Model:
    """Local functions inlined, types and shapes inferred as far as ONNX knows the operators."""
    from onnx_ir.passes.common import InlinePass, ShapeInferencePass

    with libraries(prints=True):
        if model.functions:
            model = InlinePass()(model).model
        return ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model).model


def _first_line(cause: Exception) -> str:
    text = str(cause).strip() or type(cause).__name__
    return text.splitlines()[0][:200]
