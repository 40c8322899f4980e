"""A graph against every rule of one TensorRT generation and one board."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm_deploy.errors import EXIT_LINT_FAILED, EXIT_PASSED, MissingExtraError, PlanError
from edgevlm_deploy.target import Backend, Target

try:
    from edgevlm_deploy.lint import files, operators, quantization, shapes
    from edgevlm_deploy.lint import memory as memories
    from edgevlm_deploy.lint.generations import Generation, generation
    from edgevlm_deploy.lint.subject import Finding, Profile, Rule, Severity, Subject, load
except ModuleNotFoundError as missing:
    if missing.name not in ("onnx", "onnx_ir"):
        raise
    raise MissingExtraError(
        "Reading ONNX graphs needs onnx and onnx-ir, which are not installed. Run: pip install "
        "'edgevlm[compile]'"
    ) from missing

RULES: tuple[Rule, ...] = (
    operators.opset,
    operators.operators,
    operators.restrictions,
    operators.types,
    quantization.qdq_pairs,
    quantization.scales,
    quantization.zero_points,
    quantization.granularity,
    quantization.int4_blocks,
    quantization.formats,
    shapes.data_dependent,
    shapes.profiles,
    files.external_data,
)


@dataclass(frozen=True)
class Report:
    path: Path
    target: Target
    release: str
    generation: Generation
    findings: tuple[Finding, ...]
    memory: memories.Memory

    @property
    def errors(self) -> int:
        return sum(one.severity is Severity.ERROR for one in self.findings)

    @property
    def exit_code(self) -> int:
        return EXIT_LINT_FAILED if self.errors else EXIT_PASSED

    def to_json(self) -> dict[str, Any]:
        """Findings and the memory estimate, with what they were judged against."""
        return {
            "graph": str(self.path),
            "target": self.target.name,
            "tensorrt": self.release,
            "rules_from": self.generation.source,
            "errors": self.errors,
            "warnings": len(self.findings) - self.errors,
            "findings": [
                {"rule": one.rule, "severity": one.severity.value, "where": one.where, "message": one.message}
                for one in self.findings
            ],
            "memory_estimate": {
                "weights_bytes": self.memory.weights_bytes,
                "inputs_outputs_bytes": self.memory.inputs_outputs_bytes,
                "activations_bytes": self.memory.activations_bytes,
                "total_bytes": self.memory.total_bytes,
                "tensors_of_unknown_size": self.memory.unknown,
            },
        }


def lint(path: Path, target: Target, profiles: Mapping[str, Profile]) -> Report:
    """Errors before warnings, otherwise in the order of `RULES`, memory last.

    profiles  input → shapes, or symbol of a dynamic size → sizes

    Raises PlanError for a target without TensorRT, NotFoundError and GraphError for a file that is no graph.
    """
    release = target.software.get("tensorrt")
    if target.backend is not Backend.TENSORRT or release is None:
        raise PlanError(
            f"Target {target.name} has no TensorRT (backend {target.backend.value}); the rules are "
            "TensorRT's. Choose a Jetson target: edgevlm targets."
        )
    model = load(path)
    ranges = shapes.by_symbol(model, profiles)
    subject = Subject(model, path, target, release, generation(release), ranges)
    memory = memories.estimate(subject)
    found = [*(finding for rule in RULES for finding in rule(subject)), *memories.judge(subject, memory)]
    found.sort(key=lambda one: one.severity is Severity.WARNING)
    return Report(path, target, release, subject.generation, tuple(found), memory)
