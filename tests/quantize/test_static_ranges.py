"""Ranges of inputs from hooks: those of Neural Compressor's graph, over every sample."""

from __future__ import annotations

import copy
from typing import Any

import inc_ranges
import pytest
import torch

from edgevlm_deploy.errors import DataError, QuantizationError
from edgevlm_deploy.quantize import capture, fakequant, quantize, resolve, static_ranges
from edgevlm_deploy.quantize.rounding import static_activation
from edgevlm_deploy.recipe import Component, ObserverName, Precision, Quantizer, Scheme

ROOTS = ("model.vision_model.encoder", "model.connector.modality_projection.proj")


@pytest.fixture(scope="module")
def loud_batches(batch_of: Any) -> list[dict[str, Any]]:
    """Of one and two tiles, one of them rare and loud."""
    batches = [batch_of(seed, pictures=1 + seed % 2) for seed in range(4)]
    batches[2]["pixel_values"] = batches[2]["pixel_values"] * 20
    return batches


def test_scales_are_those_of_the_librarys_graph(float_model: Any, loud_batches: Any, modules: Any) -> None:
    names = modules["vision_encoder"] + modules["projector"]
    found = static_ranges.scales(float_model, names, loud_batches)
    theirs: dict[str, float] = {}
    for root in ROOTS:
        theirs |= inc_ranges.scales(copy.deepcopy(float_model), root, loud_batches)
    assert set(found) == set(theirs)
    for name in names:
        assert found[name] == pytest.approx(theirs[name], rel=1e-5), name
    # What is stored has eight significant bits, so a difference in the last bit of a float is gone.
    stored = [{name: static_activation(one[name]) for name in names} for one in (found, theirs)]
    assert stored[0] == stored[1]


def test_every_sample_is_covered(float_model: Any, loud_batches: Any, modules: Any) -> None:
    found = static_ranges.scales(float_model, modules["vision_encoder"], loud_batches)
    for name in modules["vision_encoder"]:
        largest: list[float] = []
        capture.watch(
            float_model,
            name,
            loud_batches,
            lambda seen, top=largest: top.append(float(seen["input"].abs().max())),
        )
        assert found[name] == max(largest) / 127.5, name


def test_other_observers_cover_less(float_model: Any, loud_batches: Any, modules: Any) -> None:
    name = modules["vision_encoder"][0]
    scales = {
        rule: static_ranges.scales(float_model, [name], loud_batches, rule)[name] for rule in ObserverName
    }
    assert all(0 < scale <= scales[ObserverName.MINMAX] * (1 + 1e-6) for scale in scales.values())
    assert len(set(scales.values())) > 1


def test_pictures_are_needed(float_model: Any, batch_of: Any, modules: Any) -> None:
    name = modules["vision_encoder"][0]
    text = batch_of(0, pictures=0)
    del text["pixel_values"], text["pixel_attention_mask"]
    with pytest.raises(QuantizationError, match=rf"{name}: No calibration sample reaches it"):
        static_ranges.scales(float_model, [name], [text])
    with pytest.raises(DataError, match="calibration set is empty"):
        static_ranges.scales(float_model, [name], [])


def test_values_that_are_not_finite(float_model: Any, batch_of: Any, modules: Any) -> None:
    model, name = copy.deepcopy(float_model), modules["vision_encoder"][0]
    with torch.no_grad():
        model.get_submodule("model.vision_model.encoder.layers.0.layer_norm1").weight[0] = torch.nan
    for rule in (ObserverName.MINMAX, ObserverName.MSE):
        with pytest.raises(QuantizationError, match=rf"{name}: An activation is not finite"):
            static_ranges.scales(model, [name], [batch_of(0)], rule)


def test_the_observer_reaches_the_table(float_model: Any, loud_batches: Any, modules: Any) -> None:
    components = {Component.VISION_ENCODER: Precision(scheme=Scheme.W8A8)}
    request = resolve(components, (), modules, Quantizer.NEURAL_COMPRESSOR)
    tables = [
        quantize(lambda: copy.deepcopy(float_model), request, loud_batches, observer=rule)
        for rule in (ObserverName.MINMAX, ObserverName.PERCENTILE)
    ]
    scales = [[linear.activation.scale for linear in one.table.values()] for one in tables]
    assert all(a >= b for a, b in zip(*scales, strict=True)) and scales[0] != scales[1]
    fakequant.apply(copy.deepcopy(float_model), tables[1])
