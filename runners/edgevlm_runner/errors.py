"""Errors a device can meet, and the root of the whole error tree.

Python 3.8, standard library only: this file travels inside every bundle.

    EdgeVlmError              1   a defect in edgevlm itself
    ├── BundleError          20   bundle missing, truncated, tampered with or of another version
    ├── ImageError           21   an image that cannot be decoded or is too large
    ├── PromptError          22   a prompt that does not fit the artifact
    ├── RuntimeUnavailable   23   the runtime that the bundle needs is not installed
    ├── ExecutionError       24   the runtime refused a graph or failed while running it
    └── StorageError         25   disk full, or a path that cannot be written

`edgevlm_deploy.errors` adds the causes that only the host knows.
"""

from __future__ import annotations


class EdgeVlmError(Exception):
    """Root of every error that edgevlm raises on purpose.

    The message says what was received, what was expected and how to mend it.
    `exit_code` is unique to the cause.
    """

    exit_code = 1


class BundleError(EdgeVlmError):
    exit_code = 20


class ImageError(EdgeVlmError):
    exit_code = 21


class PromptError(EdgeVlmError):
    exit_code = 22


class RuntimeUnavailable(EdgeVlmError):
    exit_code = 23


class ExecutionError(EdgeVlmError):
    exit_code = 24


class StorageError(EdgeVlmError):
    exit_code = 25
