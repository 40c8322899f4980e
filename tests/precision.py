"""What a recipe asks of one module, for tests that need no recipe."""

from __future__ import annotations

from edgevlm_deploy.quantize.request import ModuleRequest
from edgevlm_deploy.quantize.schemes import formats, weight_format
from edgevlm_deploy.recipe import Algorithm, Component, Precision, Scheme
from edgevlm_deploy.target import Backend


def wanted(
    component: Component,
    scheme: Scheme,
    algorithm: Algorithm = Algorithm.RTN,
    backend: Backend = Backend.ONNXRUNTIME,
    accelerator: str = "cpu",
) -> ModuleRequest:
    offered = formats(backend, accelerator)
    precision = Precision(scheme=scheme, algorithm=algorithm)
    return ModuleRequest(component, scheme, algorithm, weight_format(precision, component, offered))
