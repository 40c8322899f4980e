"""What a scheme means in numbers: bits, columns per scale, kind of activation."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm_deploy.recipe import Component, Scheme


@dataclass(frozen=True)
class WeightFormat:
    """How the weights [N, K] of one module are stored, and whether its input is quantised too."""

    bits: int
    group: int | None
    """Columns that share a scale; None is one scale per output channel (per row of an embedding)."""
    static_activation: bool = False
    """int8 input with one calibrated scale per tensor."""

    def block(self, columns: int) -> int:
        """Columns per scale in a matrix of `columns` columns, as `QuantizedLinear.block` states it."""
        return columns if self.group is None else self.group


_FORMATS = {
    Scheme.W8A8: WeightFormat(bits=8, group=None, static_activation=True),
    Scheme.W8A16: WeightFormat(bits=8, group=32),
    Scheme.W4A16_G32: WeightFormat(bits=4, group=32),
    Scheme.W4A16_G64: WeightFormat(bits=4, group=64),
    Scheme.W4A16_G128: WeightFormat(bits=4, group=128),
    Scheme.W4A16_CHANNEL: WeightFormat(bits=4, group=None),
    Scheme.W3A16_CHANNEL: WeightFormat(bits=3, group=None),
}

_EMBEDDING_FORMAT = WeightFormat(bits=8, group=None)


def weight_format(scheme: Scheme, component: Component) -> WeightFormat:
    """All formats are symmetric. An embedding has one scale per row, because a lookup reads one row.

    `Scheme.FP16` has no format: such a module is not in the table.
    """
    if component is Component.EMBEDDING and scheme is Scheme.W8A16:
        return _EMBEDDING_FORMAT
    return _FORMATS[scheme]
