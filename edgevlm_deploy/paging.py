"""Weights that stay in the checkpoint's files: how a model larger than the memory is computed with.

transformers maps the files and copies nothing as long as it may keep their dtype. So the large matrices of
linear layers and embeddings stay as they are stored, and a layer widens its own to float32 while it computes,
some rows at a time; the kernel drops pages of files when it needs their memory. Everything else becomes
float32. The numbers are those of a model that was loaded in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from edgevlm_deploy.memory import available_bytes

LARGE = 1 << 20
"""Values from which on a matrix stays in its file."""
CHUNK = 1 << 25
"""Values that are widened at a time."""
COPIES = 2.5
"""Of the float32 model that a compilation holds at its peak when all of it is in memory: the model, the
graph's weights, and what is computed with."""


def is_needed(parameters: int) -> bool:
    """Whether a model of so many parameters is too large for what memory is left."""
    available = available_bytes()
    return available is not None and parameters * 4 * COPIES > available


@dataclass(frozen=True)
class Factor:
    """Of a weight [N, K]: its columns are multiplied by [K], or its rows divided by [N]."""

    columns: Any = None
    divided_rows: Any = None


class Paged:
    """A module whose `weight` [N, K] has the checkpoint's dtype, on pages of its file."""

    weight: Any
    rounds_to_half = False
    """Whether values go through fp16: what is not quantised ships so."""
    integers: Any = None
    """QuantizedLinear that stands in for the weight, once the model is fake-quantised."""
    factors: tuple[Factor, ...] = ()
    """What was folded into the weight, in order."""

    def compute_with(self, integers: Any) -> Dequantized:
        """Take the place of the weight; the handle's `remove` undoes it."""
        self.integers = integers
        return Dequantized(self)

    def widened(self, rows: slice | Any) -> Any:
        """float32 [rows, K]; `rows` may also be an int64 tensor."""
        if self.integers is not None:
            where = rows if isinstance(rows, slice) else rows.numpy()
            return torch.from_numpy(self.integers.rows(where).dequantize())
        values = self.weight[rows]
        values = (values.half() if self.rounds_to_half else values).float()
        for factor in self.factors:
            if factor.columns is not None:
                values = values * factor.columns
            if factor.divided_rows is not None:
                values = values / factor.divided_rows[rows, None]
        return values

    def fold(self, factor: Factor) -> None:
        """Scale the weight; it is the page's values times these from now on."""
        self.factors = (*self.factors, factor)


@dataclass(frozen=True)
class Dequantized:
    """Handle of a module that computes with integers instead of its weight."""

    module: Paged

    def remove(self) -> None:
        self.module.integers = None


class PagedLinear(Paged, torch.nn.Linear):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        if torch.compiler.is_exporting():
            return torch.nn.functional.linear(x, self.widened(slice(None)), self.bias)
        parts = [torch.nn.functional.linear(x, self.widened(rows)) for rows in chunks(*self.weight.shape)]
        product = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        return product if self.bias is None else product.add_(self.bias)


class PagedEmbedding(Paged, torch.nn.Embedding):  # type: ignore[misc]
    def forward(self, ids: Any) -> Any:
        if torch.compiler.is_exporting():
            return torch.nn.functional.embedding(ids, self.widened(slice(None)))
        found, places = torch.unique(ids, return_inverse=True)
        return self.widened(found)[places]


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """All rows of a matrix, at most `CHUNK` values at a time."""
    step = max(1, CHUNK // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def keep(model: Any) -> None:
    """Leave large matrices of linear layers and embeddings as they are, make everything else float32."""
    kept: set[int] = set()
    for module in model.modules():
        paged = {torch.nn.Linear: PagedLinear, torch.nn.Embedding: PagedEmbedding}.get(type(module))
        if paged is not None and module.weight.numel() >= LARGE:
            module.__class__ = paged
            kept.add(id(module.weight))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and id(tensor) not in kept:
                tensor.data = tensor.data.float()


@contextmanager
def resident(model: Any, name: str) -> Iterator[Any]:
    """Submodule `name` with its weights in memory, while open; afterwards its paged modules are as before.

    Meanwhile they are ordinary modules with float32 parameters, in which a search may try other values.
    """
    whole = model.get_submodule(name)
    before = [
        (module, type(module), module.weight) for module in whole.modules() if isinstance(module, Paged)
    ]
    try:
        yield unpaged(whole)
    finally:
        for module, kind, weight in before:
            module.__class__, module.weight = kind, weight


def unpaged(model: Any) -> Any:
    """Read every page, for what cannot work with them; returns the model."""
    for module in model.modules():
        if isinstance(module, Paged):
            weight = module.widened(slice(None))
            module.__class__ = torch.nn.Linear if isinstance(module, PagedLinear) else torch.nn.Embedding
            module.weight = torch.nn.Parameter(weight, requires_grad=False)
    return model


def pages(model: Any) -> frozenset[str]:
    """Names of the parameters that were left on pages of their files."""
    paged = ((name, module) for name, module in model.named_modules() if isinstance(module, Paged))
    return frozenset(f"{name}.weight" for name, _ in paged)
