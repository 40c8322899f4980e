"""What quantisation yields: the table of integers, and the float parameters that it changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize.table import QuantizedTable

_FLOATS = "float_parameters.safetensors"


@dataclass(frozen=True)
class QuantizedModel:
    """A source model is quantised by setting `float_parameters`, then replacing the weights in `table`.

    float_parameters: parameter name in the source model → float32 values that replace it. AWQ and
    SmoothQuant move scales between a norm and the layers after it; the norm then differs from the
    checkpoint. Parameters that are not named keep the checkpoint's values.
    """

    table: QuantizedTable
    float_parameters: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        """Write `table.safetensors`, `table.json` and `float_parameters.safetensors` into `directory`."""
        from safetensors.numpy import save_file

        self.table.save(directory)
        floats = {name: np.ascontiguousarray(value) for name, value in sorted(self.float_parameters.items())}
        save_file(floats, directory / _FLOATS)

    @classmethod
    def load(cls, directory: Path) -> QuantizedModel:
        """Read what `save` wrote. Raises QuantizationError when a file is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return cls(table=QuantizedTable.load(directory), float_parameters=load_file(directory / _FLOATS))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise QuantizationError(
                f"{directory}: not a saved quantised model ({error}). Quantise again."
            ) from error
