"""Ranges as Neural Compressor finds them in an exported (PT2E) graph, which ours are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgevlm_deploy.quantize import capture, inc


def scales(model: Any, root: str, batches: Sequence[Any]) -> dict[str, float]:
    """Linear layer below `root`, by its name in the model → scale of its input."""
    example = next(_rows(capture.first_inputs(model, root, batches)))
    module = model.get_submodule(root)

    class Positional(torch.nn.Module):
        """torch.export takes positional inputs, transformers' modules take keywords."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *tensors: Any) -> Any:
            output = self.inner(**dict(zip(example, tensors, strict=True)))
            return output if isinstance(output, torch.Tensor) else output[0]

    with inc._library() as library:
        from neural_compressor.torch.export import export

        exported = export(Positional().eval(), tuple(example.values()))
        prepared = library.prepare(exported, library.StaticQuantConfig(act_dtype="int8", act_sym=True))
        _watch_full_range(prepared)

    def see(inputs: dict[str, Any]) -> None:
        for row in _rows(inputs):
            prepared(*row.values())

    capture.watch(model, root, batches, see)
    with inc._library() as library:
        return {f"{root}.{name}".rstrip("."): scale for name, scale in _read(library.convert(prepared))}


def _rows(inputs: dict[str, Any]) -> Any:
    """One picture tile at a time; a tensor that broadcasts over the batch goes along unchanged."""
    count = max(value.shape[0] for value in inputs.values())
    for row in range(count):
        yield {
            key: value[row : row + 1] if value.shape[0] == count else value for key, value in inputs.items()
        }


def _watch_full_range(prepared: Any) -> None:
    """Its "minmax" is a moving average that forgets rare large activations."""
    from torchao.quantization.pt2e.observer import MinMaxObserver, MovingAverageMinMaxObserver

    for name, observer in list(prepared.named_children()):
        if isinstance(observer, MovingAverageMinMaxObserver):
            full = MinMaxObserver(
                dtype=observer.dtype,
                qscheme=observer.qscheme,
                quant_min=observer.quant_min,
                quant_max=observer.quant_max,
                eps=float(observer.eps),
            )
            setattr(prepared, name, full)


def _read(converted: Any) -> Any:
    decomposed = torch.ops.quantized_decomposed
    for node in converted.graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.aten.linear.default:
            activation = node.args[0]
            if activation.target is decomposed.dequantize_per_tensor.default:
                path = list(node.meta["nn_module_stack"].values())[-1][0]
                yield path.partition("inner")[2].removeprefix("."), float(activation.args[1])
