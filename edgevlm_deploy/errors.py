"""The error tree, one exit code per cause.

    EdgeVlmError              1   a defect in edgevlm itself
    ├── ConfigError          10   a recipe or target file that is not valid
    ├── NotFoundError        11   no target, recipe or file of that name
    ├── PlanError            12   the recipe asks for what the target or model family cannot do
    ├── CheckpointError      13   a model checkpoint that is missing, damaged or not supported
    ├── DataError            14   evaluation or calibration data that cannot be used
    ├── MissingExtraError    15   an optional dependency is not installed
    ├── QuantizationError    16   the quantiser did not deliver what was asked for
    ├── ExportError          17   an exported graph disagrees with the quantised model
    ├── GraphError           18   a file that was to be linted holds no ONNX graph
    ├── DeviceError          19   a device that cannot be reached, lacks Python or went silent
    ├── EndpointError        26   a language model that was to judge refuses or does not answer
    ├── SweepError           27   some cells of a sweep have no results
    └── the device's errors  20…  see `edgevlm_runner.errors`

Verdicts are not errors but have exit codes too: 0 passed, 3 gates failed, 4 inconclusive; 5 the linter found
errors in a graph.
2 is a wrong command line, 130 an interrupt.
"""

from __future__ import annotations

from edgevlm_runner.errors import (
    BundleError,
    EdgeVlmError,
    ExecutionError,
    ImageError,
    PromptError,
    RuntimeUnavailable,
    StorageError,
)

__all__ = [
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "EdgeVlmError",
    "EndpointError",
    "ExecutionError",
    "ExportError",
    "GraphError",
    "ImageError",
    "MissingExtraError",
    "NotFoundError",
    "PlanError",
    "PromptError",
    "QuantizationError",
    "RuntimeUnavailable",
    "StorageError",
    "SweepError",
]

EXIT_PASSED = 0
EXIT_GATES_FAILED = 3
EXIT_INCONCLUSIVE = 4
EXIT_LINT_FAILED = 5
EXIT_INTERRUPTED = 130


class ConfigError(EdgeVlmError):
    exit_code = 10


class NotFoundError(EdgeVlmError):
    exit_code = 11


class PlanError(EdgeVlmError):
    exit_code = 12


class CheckpointError(EdgeVlmError):
    exit_code = 13


class DataError(EdgeVlmError):
    exit_code = 14


class MissingExtraError(EdgeVlmError):
    exit_code = 15


class QuantizationError(EdgeVlmError):
    exit_code = 16


class ExportError(EdgeVlmError):
    exit_code = 17


class GraphError(EdgeVlmError):
    exit_code = 18


class DeviceError(EdgeVlmError):
    exit_code = 19


class EndpointError(EdgeVlmError):
    exit_code = 26


class SweepError(EdgeVlmError):
    exit_code = 27
