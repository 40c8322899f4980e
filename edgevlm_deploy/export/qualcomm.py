"""Ahead-of-time compilation for Qualcomm's Hexagon, by LiteRT's compiler plugin and Qualcomm's own SDK.

Written after `ai_edge_litert.aot`; not run on hardware, nor with the SDK: it is downloaded from Qualcomm when
its package is installed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgevlm_deploy import quiet
from edgevlm_deploy.artifacts import atomic_path
from edgevlm_deploy.errors import ExportError, MissingExtraError, PlanError
from edgevlm_deploy.export import tflite

SDK = "ai-edge-litert-sdk-qualcomm"
COMPILER = "libQnnHtp.so"
"""What the SDK's package lacks when its download failed, which its installation does not report."""


def compile(model: Path, soc: str, out: Path) -> Mapping[str, int]:
    """Write to `out` the .tflite file `model` with what the NPU of `soc` takes compiled for it.

    Returns how many operators went to the NPU and how many there are, over all signatures.
    Raises MissingExtraError without the SDK, PlanError for a chip that the compiler does not know,
    ExportError when it fails or leaves everything on the CPU.
    """
    with quiet.toolkit("ai-edge-litert", "Compiling for Qualcomm's NPU", "litert", ExportError):
        from ai_edge_litert.aot import aot_compile
        from ai_edge_litert.aot.vendors.qualcomm import target

        known = [one.value for one in target.SocModel if one is not target.SocModel.ALL]
        if soc not in known:
            raise PlanError(
                f"Qualcomm's compiler knows the chips {', '.join(known)}; the target has {soc!r}."
            )
        _require_sdk()
        with tempfile.TemporaryDirectory(prefix="edgevlm-qualcomm-") as folder:
            compiled = aot_compile.aot_compile(
                str(model), folder, target=target.Target(target.SocModel(soc)), keep_going=False
            )
            (made,) = compiled.models
            with atomic_path(out) as temporary:
                temporary.write_bytes(made.path.read_bytes())
            stats = made.partition_stats.subgraph_stats
    counted = {
        "operators_on_npu": sum(one.num_ops_offloaded for one in stats),
        "operators": sum(one.num_total_ops for one in stats),
    }
    if not counted["operators_on_npu"]:
        raise ExportError(f"{model}: the compiler gave no operator to the NPU of {soc}.")
    if set(tflite.load(out).signatures) != set(tflite.load(model).signatures):
        raise ExportError(f"{out}: the compiler changed the signatures.")
    return counted


def _require_sdk() -> None:
    advice = f"pip install {SDK} (on x86-64 Linux; it downloads the SDK from Qualcomm)"
    try:
        import ai_edge_litert_sdk_qualcomm as sdk
    except ImportError as error:
        raise MissingExtraError(f"Compiling for Qualcomm's NPU needs Qualcomm's SDK: {advice}.") from error
    libraries = sdk.path_to_sdk_libs()
    if libraries is None or not (libraries / COMPILER).is_file():
        raise MissingExtraError(
            f"{SDK} is installed without Qualcomm's SDK: its download failed. Install it again with a "
            f"connection to Qualcomm: {advice}."
        )
