"""The stand-in for TensorRT and CUDA, and graphs for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_tensorrt

STANDIN = Path(__file__).parents[1] / "standin"


def _forget() -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in ("tensorrt", "cuda") or name.startswith("standin_"):
            del sys.modules[name]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Make `import tensorrt` and `import cuda` find the stand-in of a release; returns its device."""
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(STANDIN))

    def release(name: str, fails: str = "") -> Any:
        _forget()
        monkeypatch.setenv("STANDIN_TENSORRT", name)
        monkeypatch.setenv("STANDIN_FAILS", fails)
        import standin_device

        return standin_device.DEVICE

    yield release
    _forget()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """Folder with the three graphs of a release: fp16 from TensorRT 10 on."""
    folder = tmp_path_factory.mktemp("graphs")

    def made(release: str, updates: bool) -> Path:
        half = release != "8.6"
        root = folder / f"{updates}-{half}"
        if not root.is_dir():
            tiny_tensorrt.write(root, updates, half)
        return Path(root)

    return made
