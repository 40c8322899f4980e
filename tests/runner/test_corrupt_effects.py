"""The corruptions beyond the edge suite, and perturbations: each does what its definition says."""

from __future__ import annotations

import numpy as np
import pytest
from edgevlm_runner.corrupt import CORRUPTIONS, SEVERITIES, corrupt
from edgevlm_runner.corrupt.planes import enlarged, gaussian, mirrored, sampled
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edgevlm_deploy.recipe import SENSOR_SUITE

Pixels = NDArray[np.int64]


def panels() -> Image.Image:
    """128 × 96 pixels with a ramp, bars and a chequerboard: structure that a blur has to work for."""
    y, x = np.mgrid[0:96, 0:128]
    planes = [2 * x % 256, y // 8 * 37 % 256, (x // 16 + y // 16) % 2 * 160]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def pixels(image: Image.Image) -> Pixels:
    return np.asarray(image).astype(np.int64)


def changed(image: Image.Image, name: str, severity: int, seed: int = 0, size: int | None = None) -> Pixels:
    return pixels(corrupt(image, name, severity, seed=seed, image_id="x", reference_size=size))


def lost_detail(clean: Pixels, out: Pixels) -> float:
    steps = np.diff(clean, axis=1).ravel(), np.diff(out, axis=1).ravel()
    return 1.0 - float(np.corrcoef(*steps)[0, 1])


GROWING = (
    *("glass_blur", "zoom_blur", "elastic_transform", "frost"),
    *(sensor.value for sensor in SENSOR_SUITE),
    *(f"cifar-c:{name}" for name in ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur")),
    *(f"cifar-c:{name}" for name in ("zoom_blur", "brightness", "contrast", "snow", "jpeg_compression")),
    *(f"perturbed:{name}" for name in ("small_shift", "jpeg_quality", "brightness_shift")),
)


@pytest.mark.parametrize("name", GROWING)
def test_severity_grows_the_distance(name: str) -> None:
    """Averaged over seeds. Frost weighs the picture less and the ice more, so detail is what it costs."""
    clean = pixels(panels())
    damage = lost_detail if name == "frost" else lambda one, other: float(np.abs(one - other).mean())
    found = [
        sum(damage(clean, changed(panels(), name, severity, seed)) for seed in range(12))
        for severity in SEVERITIES
    ]
    assert found == sorted(set(found)) and found[0] > 0


@pytest.mark.parametrize("first", [2, 3])
def test_snow_grows_from_its_first_and_from_its_third_severity(first: int) -> None:
    """As published: the many small flakes of severity 2 cover more than the large ones of 3."""
    clean = pixels(panels())
    cover = {
        severity: sum(float(np.abs(changed(panels(), "snow", severity, k) - clean).mean()) for k in range(6))
        for severity in SEVERITIES
    }
    assert cover[1] < cover[first] and cover[3] < cover[4] < cover[5]


GREY_STAYS_GREY = [name for name in CORRUPTIONS if "noise" not in name and name not in ("frost", "low_light")]


@pytest.mark.parametrize("name", GREY_STAYS_GREY)
def test_a_grey_picture_stays_grey(name: str) -> None:
    """Noise is per channel, as in the source; frost is bluish; all else treats the channels alike."""
    out = changed(panels().convert("L").convert("RGB"), name, 4)
    assert np.abs(out - out.mean(axis=2, keepdims=True)).max() <= (1 if "jpeg" in name else 0)


@given(value=st.integers(0, 255), severity=st.sampled_from(SEVERITIES), size=st.integers(1, 40))
@settings(max_examples=20)
def test_a_flat_picture_stays_flat_where_pixels_only_move(value: int, severity: int, size: int) -> None:
    flat = Image.new("RGB", (size, 41 - size), (value, 255 - value, value // 2))
    moving = ("glass_blur", "zoom_blur", "elastic_transform", "rolling_motion", "block_loss")
    for name in (*moving, "perturbed:small_shift", "perturbed:paraphrase"):
        assert (changed(flat, name, severity) == pixels(flat)).all(), name


def test_zoom_is_the_mean_of_enlargements_about_the_centre() -> None:
    image = Image.new("RGB", (101, 101))
    image.putpixel((50, 50), (255, 255, 255))
    image.putpixel((0, 50), (255, 255, 255))
    out = changed(image, "zoom_blur", 1)[:, :, 0]
    assert out[50, 50] > 200 and 30 < out[50, 0] < 64
    # Eleven frames and the picture itself; the first frame is the picture too.
    assert out[50, 0] >= round(2 * 255 / 12)


def test_lengths_grow_with_the_picture() -> None:
    clean = pixels(panels())
    for name in ("glass_blur", "elastic_transform", "rolling_motion", "block_loss"):
        by_size = [np.abs(changed(panels(), name, 3, size=size) - clean).mean() for size in (400, 50)]
        assert by_size[0] < by_size[1], name


def test_low_light_loses_whole_stops_and_gains_half_of_them() -> None:
    white = Image.new("RGB", (100, 100), (255, 255, 255))
    mean, spread = zip(
        *(
            (out.mean() / 255, out.std() / out.mean())
            for out in (changed(white, "low_light", s) for s in (1, 5))
        ),
        strict=True,
    )
    # Linear light 2^(-stops/2) is its square root in pixel values.
    assert mean == pytest.approx([0.5**0.5, 0.5**1.5], abs=0.01)
    # Relative noise in linear light is √(n + 4) / n for n electrons, half of it after the square root.
    assert spread == pytest.approx([0.5 * 1004**0.5 / 1000, 0.5 * 66.5**0.5 / 62.5], rel=0.05)


def test_a_pan_slants_what_is_upright() -> None:
    image = np.zeros((224, 224, 3), dtype=np.uint8)
    image[:, 108:116] = 255
    out = changed(Image.fromarray(image), "rolling_motion", 5)[:, :, 0]
    centre = (out * np.arange(224)).sum(axis=1) / out.sum(axis=1)
    slope = np.polyfit(np.arange(224), centre, 1)[0] * 224
    # The shaking is not quite orthogonal to a line.
    assert abs(slope) == pytest.approx(28, abs=6)


def test_dirt_covers_more_with_severity_and_only_darkens_white() -> None:
    white = Image.new("RGB", (200, 150), (255, 255, 255))
    covered = [
        sum((changed(white, "lens_dirt", severity, seed)[:, :, 0] < 250).mean() for seed in range(8)) / 8
        for severity in SEVERITIES
    ]
    assert covered == sorted(covered)
    assert 0.02 < covered[0] < 0.1 and 0.25 < covered[-1] < 0.5


def test_banding_is_constant_along_a_line_but_for_hot_pixels() -> None:
    grey = Image.new("RGB", (300, 200), (128, 128, 128))
    out = changed(grey, "thermal_banding", 5)[:, :, 0]
    hot = out == 255
    assert hot.mean() == pytest.approx(0.12 / 50, rel=0.3)
    rows = np.median(out, axis=1, keepdims=True)
    columns = np.median(out - rows, axis=0, keepdims=True)
    assert np.abs(out - rows - columns)[~hot].max() <= 2
    assert rows.std() > 2 * columns.std()


@pytest.mark.parametrize(("severity", "kept", "share"), [(1, 0.8, 0.02), (5, 0.2, 0.25)])
def test_blocks_are_flattened_or_lost(severity: int, kept: float, share: float) -> None:
    """In noise, a block from elsewhere is unlike what was there; a flattened one is still like it."""
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    lost, spreads = [], []
    for seed in range(20):
        out = changed(Image.fromarray(noise), "block_loss", severity, seed)
        expected = noise * kept + 127.5 * (1 - kept)
        away = np.abs(out - expected).reshape(14, 16, 14, 16, 3).mean(axis=(1, 3, 4))
        lost.append((away > 2 * np.median(away)).mean())
        spreads.append(out.std() / noise.std())
    assert np.mean(lost) == pytest.approx(share, rel=0.25)
    # Means of 64 pixels vary by an eighth of what pixels vary.
    assert np.mean(spreads) == pytest.approx(kept, abs=0.04)


def test_perturbations_are_small() -> None:
    clean = pixels(panels())
    for seed in range(4):
        shifted = changed(panels(), "perturbed:small_shift", 2, seed)
        inner = clean[10:-10, 10:-10]
        fits = [(shifted[10 + y : 86 + y, 10 + x : 118 + x] == inner).all() for y in (-2, 2) for x in (-2, 2)]
        assert sum(fits) >= 1
        assert np.abs(changed(panels(), "perturbed:brightness_shift", 5, seed) - clean).max() <= 14
    assert (changed(panels(), "perturbed:paraphrase", 5) == clean).all()


def test_cifar_constants_hold_at_32_pixels() -> None:
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    assert changed(grey, "cifar-c:gaussian_noise", 1).std() / 255 == pytest.approx(0.04, rel=0.02)
    small = panels().resize((32, 32))
    out = changed(small, "cifar-c:motion_blur", 3)
    assert (out == changed(small, "cifar-c:motion_blur", 3, size=32)).all()
    assert (out != changed(small, "cifar-c:motion_blur", 3, size=224)).any()


@given(st.integers(-500, 500), st.integers(1, 40))
def test_indices_are_mirrored_as_numpy_pads(index: int, count: int) -> None:
    padded = np.pad(np.arange(count), 500, mode="symmetric")
    assert mirrored(np.array([index]), count)[0] == padded[index + 500]


def test_integer_filters_agree_with_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    plane = np.random.default_rng(0).integers(0, 1 << 16, (40, 50))
    smooth = gaussian(plane, (1.5, 0.7), reach=4.0, mode="edge")
    expected = ndimage.gaussian_filter(plane.astype(float), (1.5, 0.7), mode="nearest", truncate=4.0)
    assert np.abs(smooth - expected).max() < 20
    y, x = np.random.default_rng(1).integers(-2000, 20000, (2, 500))
    found = sampled(plane, y, x)
    wanted = ndimage.map_coordinates(plane.astype(float), [y / 256, x / 256], order=1, mode="reflect")
    inside = (y > 0) & (y < 39 * 256) & (x > 0) & (x < 49 * 256)
    assert np.abs(found - wanted)[inside].max() <= 0.51
    assert enlarged(np.array([[0], [256]]), 5, 1)[:, 0].tolist() == [0, 64, 128, 192, 256]
