"""Drop the exporter's notes (stack traces with paths of the compiling machine); module scopes stay."""

from __future__ import annotations

import onnx_ir as ir

from edgevlm_deploy.export import graph


def strip_traces(model: ir.Model) -> int:
    """Returns how many nodes had notes besides their scope."""
    stripped = 0
    for node in model.graph:
        notes = [key for key in node.metadata_props if key != graph.SCOPES]
        for key in notes:
            del node.metadata_props[key]
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
        stripped += bool(notes)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        if value.const_value is not None:
            value.const_value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = model.doc_string = None
    return stripped
