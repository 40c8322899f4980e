"""Rules on the files behind a graph: weights may lie beside it, nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import onnx_ir as ir

from edgevlm_deploy.lint.subject import Finding, Subject, error


def external_data(subject: Subject) -> Iterator[Finding]:
    """Every file of weights lies below the graph's folder and is long enough; one finding a file."""
    needed: dict[str, tuple[int, str]] = {}
    for value in subject.model.graph.initializers.values():
        weight = value.const_value
        if not isinstance(weight, ir.ExternalTensor):
            continue
        location, name = str(weight.location), str(value.name)
        expected = weight.nbytes
        if weight.length is not None and weight.length != expected:
            yield error(
                "external_data",
                name,
                f"{weight.length} bytes in {location} for {list(weight.shape)} of {weight.dtype.name}; "
                f"expected {expected}. The parser refuses it; save the graph again.",
            )
        end = (weight.offset or 0) + expected
        needed[location] = max(needed.get(location, (0, "")), (end, name))
    folder = subject.path.resolve().parent
    for location, (end, name) in needed.items():
        file = (folder / location).resolve()
        if (
            Path(location).is_absolute()
            or PureWindowsPath(location).is_absolute()
            or not file.is_relative_to(folder)
        ):
            problem = "leaves the graph's folder, which the parser refuses. Put the file beside the graph"
        elif not file.is_file():
            problem = "is not there. Copy it together with the graph"
        elif (size := file.stat().st_size) < end:
            problem = f"has {size:,} bytes, {name} ends at {end:,}. It was cut short; copy it again"
        else:
            continue
        yield error("external_data", location, f"{location} {problem}.")
