"""A target: what one device tier is and what it can hold, with the source of each number."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field

from edgevlm_deploy.config import Frozen


class Backend(str, Enum):
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    LITERT = "litert"


class Budgets(Frozen):
    time_to_first_token_ms_p95: Annotated[float, Field(gt=0)] | None = None
    latency_ms_p95: Annotated[float, Field(gt=0)] | None = None
    """Whole answer: picture and question in, last token out."""
    peak_rss_bytes: Annotated[int, Field(gt=0)] | None = None


class Target(Frozen):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    description: str
    backend: Backend
    memory_bytes: Annotated[int, Field(gt=0)]
    memory_bandwidth_gb_s: Annotated[float, Field(gt=0)] | None = None
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """CPU threads that the runtime may use."""
    accelerator: str = "cpu"
    soc: str = ""
    """Chip, e.g. "Tegra Orin (SM 8.7)" or "SM8650"."""
    software: dict[str, str] = {}
    """Versions the device has, e.g. jetpack, tensorrt, cuda, python."""
    formats: tuple[str, ...] = ()
    """Numeric formats that the accelerator executes."""
    budgets: Budgets = Budgets()
    recipe: str = "default"
    """Recipe that is taken when none is named: one that the device can execute."""
    sources: dict[str, str] = {}
    """key → where its number comes from."""
