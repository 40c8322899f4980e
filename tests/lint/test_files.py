"""Files by anybody: weights beside the graph, damaged, foreign and oversized files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from edgevlm_deploy import resources
from edgevlm_deploy.errors import GraphError, NotFoundError, PlanError
from edgevlm_deploy.lint import tensorrt
from edgevlm_deploy.lint.subject import Finding

ORIN = resources.target("orin")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """y = x · w with w, 4 × 4 floats, in `weights.bin` beside the graph."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[2, 4] x) => (float[2, 4] y)
          <float[4, 4] w = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}> { y = MatMul(x, w) }"""
    )
    path = tmp_path / "models" / "graph.onnx"
    path.parent.mkdir()
    ir.save(model, path, external_data="weights.bin", size_threshold_bytes=0)
    return path


def external_data(path: Path) -> list[Finding]:
    return [one for one in tensorrt.lint(path, ORIN, {}).findings if one.rule == "external_data"]


def relocate(path: Path, **entries: str) -> None:
    """Change where the graph says that its weight is."""
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = entries.get(entry.key, entry.value)
    onnx.save(model, path)


def test_weights_beside_the_graph_are_fine(graph: Path) -> None:
    report = tensorrt.lint(graph, ORIN, {})
    assert report.findings == ()
    assert report.memory.weights_bytes == 64


def test_external_data(graph: Path) -> None:
    weights = graph.parent / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:60])
    assert "has 60 bytes, w ends at 64. It was cut short" in external_data(graph)[0].message
    weights.unlink()
    assert "weights.bin is not there" in external_data(graph)[0].message


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname"])
def test_weights_outside_of_the_folder_are_not_touched(graph: Path, location: str) -> None:
    (graph.parent / "../secret.bin").write_bytes(bytes(64))
    relocate(graph, location=location)
    (finding,) = external_data(graph)
    assert "leaves the graph's folder" in finding.message


def test_a_link_out_of_the_folder_is_followed_and_found(graph: Path) -> None:
    (graph.parent / "weights.bin").rename(graph.parent.parent / "elsewhere.bin")
    (graph.parent / "weights.bin").symlink_to(graph.parent.parent / "elsewhere.bin")
    assert "leaves the graph's folder" in external_data(graph)[0].message


def test_a_length_that_does_not_fit_the_shape(graph: Path) -> None:
    relocate(graph, length="32")
    assert "32 bytes in weights.bin for [4, 4] of FLOAT; expected 64" in external_data(graph)[0].message


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 64, b"name: not an ONNX file\n", b"\x89PNG\r\n\x1a\n" * 9]
)
def test_a_file_that_is_no_graph(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    with pytest.raises(GraphError, match=r"graph\.onnx: (not an ONNX graph|an ONNX file without)"):
        tensorrt.lint(path, ORIN, {})


def test_a_tensor_that_nothing_makes(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { y = Add(x, w) }'
    )
    onnx.save(model, tmp_path / "graph.onnx")
    with pytest.raises(GraphError, match="w is read by Add and made nowhere"):
        tensorrt.lint(tmp_path / "graph.onnx", ORIN, {})


def test_a_truncated_graph(graph: Path) -> None:
    graph.write_bytes(graph.read_bytes()[:-20])
    with pytest.raises(GraphError, match="damaged"):
        tensorrt.lint(graph, ORIN, {})


def test_a_file_beyond_protobuf(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)  # sparse: it takes no room on the disk
    with pytest.raises(GraphError, match=r"2,147,483,648 bytes.*save_as_external_data"):
        tensorrt.lint(path, ORIN, {})


def test_without_onnx_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['onnx_ir'] = None\n"
        "from edgevlm_deploy.errors import MissingExtraError\n"
        "try:\n    from edgevlm_deploy.lint import tensorrt\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "pip install 'edgevlm[compile]'" in shown


def test_no_file_and_no_tensorrt(graph: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere\.onnx"):
        tensorrt.lint(Path("nowhere.onnx"), ORIN, {})
    with pytest.raises(PlanError, match="host-cpu has no TensorRT"):
        tensorrt.lint(graph, resources.target("host-cpu"), {})
