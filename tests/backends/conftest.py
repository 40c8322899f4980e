"""The tiny model of tests/export, under its own name: test folders cannot import each other."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_file = Path(__file__).parent.parent / "export" / "conftest.py"
_module_spec = importlib.util.spec_from_file_location("tiny_vlm", _file)
assert _module_spec is not None and _module_spec.loader is not None
_tiny = importlib.util.module_from_spec(_module_spec)
sys.modules["tiny_vlm"] = _tiny
_module_spec.loader.exec_module(_tiny)

compiled = _tiny.compiled
load_source = _tiny.load_source
samples = _tiny.samples
spec = _tiny.spec
table = _tiny.table
