"""Edits of an `onnx_ir.Model`, one per file.

Each is a function that checks what it needs, makes one change in place, checks what it left, and says
what it changed: an empty result means "not modified".
"""
