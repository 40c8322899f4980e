"""The tiny model of tests/export, under its own name: test folders cannot import each other."""

from __future__ import annotations

from tiny_litert import tiny_vlm

_tiny = tiny_vlm()

compiled = _tiny.compiled
load_source = _tiny.load_source
samples = _tiny.samples
spec = _tiny.spec
table = _tiny.table
