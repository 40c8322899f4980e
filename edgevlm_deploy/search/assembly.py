"""Candidates put together from models that were quantised uniformly, one per scheme and algorithm.

For rounding to nearest and for ranges of inputs this is what quantising the candidate gives. Algorithms that
look at the layers before (GPTQ) would see others in a mixture: for them it is an approximation, and the
compilation of a finalist does it for real.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize import QuantizedLinear, QuantizedModel, QuantizedTable, folding
from edgevlm_deploy.quantize.request import Request
from edgevlm_deploy.recipe import Algorithm, Scheme
from edgevlm_deploy.search.space import Block, Candidate, Space

Quantize = Callable[[Request], Path]
"""Quantises as requested; the folder of a QuantizedModel, which is made once."""


class Assembly:
    """Quantised blocks by (scheme, algorithm), loaded when they are first needed."""

    def __init__(self, space: Space, quantize: Quantize) -> None:
        self._space, self._quantize = space, quantize
        self._loaded: dict[tuple[Scheme, Algorithm], QuantizedModel] = {}
        names = [name for block in space.blocks for name in block.modules]
        self._block_of = {name: block.name for block in space.blocks for name in block.modules}
        self._folded_into = {fold.source: fold.targets[0] for fold in folding.folds(_with_norms(names))}

    def prepare(self) -> None:
        """Quantise with everything that a candidate can hold."""
        for block in self._space.blocks:
            for scheme in block.choices:
                for algorithm in self._space.algorithms:
                    if (scheme, algorithm) in block.requests:
                        self._donor(scheme, algorithm)

    def model(self, candidate: Candidate) -> QuantizedModel:
        """Raises QuantizationError when an algorithm changed a float parameter that belongs to no block."""
        table: dict[str, QuantizedLinear] = {}
        floats: dict[str, NDArray[np.float32]] = {}
        for block, scheme in zip(self._space.blocks, candidate.schemes, strict=True):
            if scheme is Scheme.FP16:
                continue
            donor = self._donor(scheme, block.algorithm(scheme, candidate.algorithm))
            table |= {name: donor.table[name] for name in block.modules}
            floats |= {
                name: value
                for name, value in donor.float_parameters.items()
                if self._owner(name) == block.name
            }
        return QuantizedModel(QuantizedTable(table), floats)

    def only(self, block: Block, scheme: Scheme) -> QuantizedModel:
        """One block rounded to nearest, everything else as it was."""
        donor = self._donor(scheme, Algorithm.RTN)
        return QuantizedModel(QuantizedTable({module: donor.table[module] for module in block.modules}))

    def error(self, block: Block, scheme: Scheme, weight_of: Callable[[str], NDArray[np.float32]]) -> float:
        """‖W − Ŵ‖² / ‖W‖² over the block's modules, rounded to nearest; weight_of gives float32 [N, K]."""
        donor = self._donor(scheme, Algorithm.RTN)
        lost = whole = 0.0
        for name in block.modules:
            weight = weight_of(name)
            lost += float(np.square(weight - donor.table[name].dequantize()).sum())
            whole += float(np.square(weight).sum())
        return lost / whole if whole else 0.0

    def _donor(self, scheme: Scheme, algorithm: Algorithm) -> QuantizedModel:
        """Every block that offers the pair, quantised with it."""
        key = scheme, algorithm
        if key not in self._loaded:
            request = {
                name: block.requests[key]
                for block in self._space.blocks
                if key in block.requests
                for name in block.modules
            }
            self._loaded[key] = QuantizedModel.load(self._quantize(request))
        return self._loaded[key]

    def _owner(self, parameter: str) -> str:
        """Block that a changed norm feeds, or that a changed module belongs to."""
        module = parameter.rpartition(".")[0]
        fed = self._folded_into.get(module, module)
        if fed not in self._block_of:
            raise QuantizationError(f"{parameter}: changed by quantisation, but it belongs to no block.")
        return self._block_of[fed]


def _with_norms(names: list[str]) -> list[str]:
    """`names` and the norms that `folding.RULES` know, which are no weight matrices."""
    layers = dict.fromkeys(name.rpartition(".")[0].rpartition(".")[0] for name in names)
    return [*names, *(f"{layer}.{source}" for layer in layers for source, _ in folding.RULES if layer)]
