"""Corruptions: equal bytes everywhere, stronger with severity, any size of picture."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from edgevlm_runner.corrupt import CONDITIONS, CORRUPTIONS, SEVERITIES, corrupt
from edgevlm_runner.errors import BundleError, ImageError
from numpy.typing import NDArray
from PIL import Image, features

from edgevlm_deploy.recipe import EDGE_SUITE, Corruption, CorruptionProfile, Evaluation, Perturbation

# SHA-256 of the RGB bytes of `gradients()` at severity 3, seed 0, image id "gradients".
GOLDEN = {
    "gaussian_noise": "ca8713cb04f3ae9b3b75f62ec02198b64bed276aea472f39a143cd7808b2e4e1",
    "shot_noise": "4dc4b4a273a587ccae8606f7fc11dfe5bd5aad828cae200e11159c7c8c8bdab9",
    "impulse_noise": "b7139670dfd4c6d2d84a459450be86a3c14652315111c1f830327044621a93ba",
    "defocus_blur": "bc3e71311db89b68aec9ec7632117c4b50d364801b131291db706155805af72e",
    "motion_blur": "77bff39b7db8424e6cdf9d341255261567272f9442e7309c33f9020fbe5d9130",
    "fog": "1e2a3d6b53a628b10f249697b69f413a067db82c1e96887484bfddbfa0180ae0",
    "brightness": "cf9d534856b80ced84d110525fc1a696015b198fcbedd0c37c849aab5055ce4c",
    "contrast": "2572b57a54b1fd3140de30ae73ae1ea22b1c63be559e50c2b28eea28ed998114",
    "jpeg_compression": "02ed54928804eefd604cd5b5af8236077535248ef4946739f92040b0b52d44c2",
    "pixelate": "74ed3a8527926f8cfc02b700ce4cf3a782d0de0dd94dbf35d033fbc55dbaf21e",
    "glass_blur": "80a2e724f8f3ddf9b47d774e427c98595d5e5088fc434bea0419ab55e32a55be",
    "zoom_blur": "1fb34f0b72626ab6e64a71ad7559967bfc9573f0e6a555d7f5f7c2562fa7350f",
    "snow": "7a60d0057140a209c5c5cbf6c5674d10940b13521c86e6475f6ae7e02e220e99",
    "frost": "b27b87f73af07e8f0b20d22d1e8801f41210e3def156ddeb624d8fb791a39210",
    "elastic_transform": "4ded933a48ac8b1a338522eb22bd60617c9afb268d482e5a30e83ed79660c309",
    "low_light": "9007d8533a6775fb9bf14200f4d5b07a1fd2885cf87fea8aa97dbbfd07496aeb",
    "rolling_motion": "e8b7cd5e56b45d91bc8807e32641c39980ad77a5afa58e5720ae9fbe114e195c",
    "lens_dirt": "cb9686afc0419c09d6de7dead6afb13ae7cafaf64ebaba9fecff5ee455b1690a",
    "thermal_banding": "3f2f8ff35f32a44153c2138d35770292842edbd5ab197b4671c38dd6889c92d1",
    "block_loss": "cc1728dab175ee5d3981a2f4e5aad409a52fc78cd92154263cb2cec9c260e573",
    "cifar-c:gaussian_noise": "2dd54b6597ea90b5017e965ba9010f370172a930e9bc1877d324e0d58f9b361b",
    "cifar-c:shot_noise": "729e863ced54ff143a831b83833d5ea92458c048cc6bfdded716d8c4a9dc9b99",
    "cifar-c:impulse_noise": "dc5a0206718b9437a9288ea7232a7eb20424456e1462beec223fc5f858f6cb6b",
    "cifar-c:defocus_blur": "3f5188e77f9b49abc05d218bbea9f02212ffef066e4a24ef99b8ce1cf889e303",
    "cifar-c:motion_blur": "794135e6abc47ccea4c1f70f7d5a0f20cbc143cd726776d0557cc4e2557eaaf3",
    "cifar-c:fog": "10aa5bbe08a791c046e51b58cd435ace9e4560dd59cbcd13df012d0b3e660e6c",
    "cifar-c:brightness": "c4fda31e6cfb88762514135234a92e332da2da77a4c067b9db7e9e7885f2228b",
    "cifar-c:contrast": "b92edd16b34cdffdf07bd18f66bb95fa0fe1c435872ebdea390586c9c250056c",
    "cifar-c:jpeg_compression": "8a98050b16f6a43c3bb3e43fcbaf44011222add05d7aab7833b076ec316ec138",
    "cifar-c:pixelate": "301a8b044f44d41a605b44b105968de26d73d85f6677f3eb6f002076f643d440",
    "cifar-c:glass_blur": "e0ecfc1aefa8369362065ee7f15e52b47cd2e2d9c351b9835bf5f23b6c9772d3",
    "cifar-c:zoom_blur": "f1ad11785c1a63f7da71694d5de89a153d818a911377f2d1e3930646570effbf",
    "cifar-c:snow": "8bee55882d23095d66f7e09e2c748d41585cd5c0beb01789dc7011adfef56799",
    "cifar-c:frost": "1cb83c7d016358b32d62e06e5f56ae0158a7869da233bb2847160b4e6bdcb270",
    "perturbed:small_shift": "06b95e5d5c48796424cc32d9c5f587d1073ee971b97d602f7e9de8b6e670a64a",
    "perturbed:jpeg_quality": "c534ec08a094df9bd8e9d22231cf672a553ee867092bb92184324aba35f4c739",
    "perturbed:brightness_shift": "c41182f60977c19a46e8de1210879c2962c6ba592ce25653f9aa2ad746d54784",
    "perturbed:paraphrase": "8a57b68a88307bde4a07d0648cf3a64d6033404826221567646ea81b8c9fed01",
}


def gradients() -> Image.Image:
    """96 × 128 pixels with a ramp and fine structure, from integers alone."""
    y, x = np.mgrid[0:96, 0:128]
    return Image.fromarray(np.stack([2 * x % 256, 3 * y % 256, x * y % 256], axis=-1).astype(np.uint8))


def pixels(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_are_those_of_every_other_machine(name: str) -> None:
    if "jpeg" in name and not features.check_feature("libjpeg_turbo"):
        pytest.skip("Pillow was built without libjpeg-turbo, whose bytes the golden value has")
    out = corrupt(gradients(), name, 3, seed=0, image_id="gradients")
    assert hashlib.sha256(out.tobytes()).hexdigest() == GOLDEN[name]


def test_names_are_those_of_the_recipe() -> None:
    assert list(CORRUPTIONS) == [corruption.value for corruption in Corruption]
    shared = tuple(c for c in Corruption if f"cifar-c:{c.value}" in CONDITIONS)
    mild = Evaluation(corruptions=shared, corruption_profile=CorruptionProfile.CIFAR_C).corruption_names
    perturbed = [f"perturbed:{perturbation.value}" for perturbation in Perturbation]
    assert list(CONDITIONS) == [*CORRUPTIONS, *mild, *perturbed] == list(GOLDEN)
    assert len(shared) == 14 and len(EDGE_SUITE) == 10


def mean_distance(clean: NDArray[np.int64], out: NDArray[np.int64]) -> float:
    return float(np.abs(out - clean).mean())


def lost_detail(clean: NDArray[np.int64], out: NDArray[np.int64]) -> float:
    """1 − correlation of pixel-to-pixel steps: what of the fine structure the fog has covered."""
    steps = np.diff(clean, axis=1).ravel(), np.diff(out, axis=1).ravel()
    return 1.0 - float(np.corrcoef(*steps)[0, 1])


@pytest.mark.parametrize("name", [corruption.value for corruption in EDGE_SUITE])
def test_severity_is_monotone(name: str) -> None:
    """Averaged over seeds: one fog map or one motion angle may by chance be kinder than another."""
    damage = lost_detail if name == "fog" else mean_distance
    clean = pixels(gradients())
    by_severity = [
        sum(
            damage(clean, pixels(corrupt(gradients(), name, severity, seed=seed, image_id="x")))
            for seed in range(12)
        )
        for severity in SEVERITIES
    ]
    assert by_severity == sorted(set(by_severity))
    assert by_severity[0] > 0


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 8), (33, 17), (17, 33), (300, 131)])
def test_any_size(name: str, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = corrupt(Image.fromarray(noise), name, 5, seed=0, image_id="x")
    assert (out.size, out.mode) == (size, "RGB")


RANDOM = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "fog", "motion_blur", "glass_blur", "snow", "frost"),
    *("elastic_transform", "low_light", "rolling_motion", "lens_dirt", "thermal_banding", "block_loss"),
    *("cifar-c:fog", "cifar-c:gaussian_noise"),
)


@pytest.mark.parametrize("name", RANDOM)
def test_random_corruptions_depend_on_seed_and_picture(name: str) -> None:
    image = gradients()
    first = corrupt(image, name, 2, seed=0, image_id="a").tobytes()
    assert corrupt(image, name, 2, seed=0, image_id="a").tobytes() == first
    assert corrupt(image, name, 2, seed=1, image_id="a").tobytes() != first
    assert corrupt(image, name, 2, seed=0, image_id="b").tobytes() != first


def test_bands_of_rows_do_not_show() -> None:
    """Noise drawn band by band is the noise drawn at once; fog reads the right rows of its map."""
    tall = Image.new("RGB", (3, 300), (100, 150, 200))
    noisy = pixels(corrupt(tall, "gaussian_noise", 1, seed=0, image_id="x"))
    # No two bands share their noise.
    assert (noisy[:128] != noisy[128:256]).any()
    foggy = pixels(corrupt(tall, "fog", 1, seed=0, image_id="x"))
    assert np.abs(np.diff(foggy[:, 0, 0])).max() < 40


def test_noise_has_the_published_strength() -> None:
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    gaussian = pixels(corrupt(grey, "gaussian_noise", 1, seed=0, image_id="x"))
    assert gaussian.std() / 255 == pytest.approx(0.08, rel=0.02)
    shot = pixels(corrupt(grey, "shot_noise", 1, seed=0, image_id="x"))
    # Poisson: variance of x·λ photons over λ² is x / λ.
    assert shot.std() / 255 == pytest.approx((128 / 255 / 60) ** 0.5, rel=0.02)
    impulse = pixels(corrupt(grey, "impulse_noise", 5, seed=0, image_id="x"))
    assert (impulse != 128).mean() == pytest.approx(0.27, abs=0.01)
    assert (impulse == 255).mean() == pytest.approx(0.135, abs=0.01)


def test_defocus_spreads_a_point_over_a_disc() -> None:
    """At 224 pixels the radius is the published one: 3 at severity 1, where the alias filter is a no-op."""
    image = np.zeros((224, 224, 3), dtype=np.uint8)
    image[112, 112] = 255
    spread = pixels(corrupt(Image.fromarray(image), "defocus_blur", 1, seed=0, image_id="x"))[:, :, 0]
    y, x = np.mgrid[-112:112, -112:112]
    disc = x * x + y * y <= 9
    assert (spread[disc] == round(255 / disc.sum())).all()
    assert (spread[~disc] == 0).all()


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "glass_blur", "elastic_transform"])
def test_blur_keeps_flat_areas_and_grows_with_the_picture(name: str) -> None:
    flat = Image.new("RGB", (90, 60), (10, 128, 250))
    assert corrupt(flat, name, 5, seed=0, image_id="x").tobytes() == flat.tobytes()
    small = corrupt(gradients(), name, 3, seed=0, image_id="x", reference_size=400)
    large = corrupt(gradients(), name, 3, seed=0, image_id="x", reference_size=50)
    clean = pixels(gradients())
    assert np.abs(pixels(small) - clean).mean() < np.abs(pixels(large) - clean).mean()


def test_brightness_keeps_hue_and_lifts_black() -> None:
    colour = Image.new("RGB", (2, 2), (40, 30, 0))
    out = pixels(corrupt(colour, "brightness", 2, seed=0, image_id="x"))[0, 0]
    assert out.tolist() == [91, 68, 0]
    black = pixels(corrupt(Image.new("RGB", (2, 2)), "brightness", 2, seed=0, image_id="x"))[0, 0]
    assert black.tolist() == [51, 51, 51]


def test_contrast_scales_the_distance_to_the_mean() -> None:
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (200, 200, 200))
    out = pixels(corrupt(image, "contrast", 1, seed=0, image_id="x"))[0, :, 0]
    assert out.tolist() == [140, 60]


def test_refuses_what_it_does_not_know() -> None:
    with pytest.raises(BundleError, match="rain/1"):
        corrupt(gradients(), "rain", 1, seed=0, image_id="x")
    with pytest.raises(BundleError, match="fog/6"):
        corrupt(gradients(), "fog", 6, seed=0, image_id="x")
    with pytest.raises(ImageError, match="'L'"):
        corrupt(gradients().convert("L"), "fog", 1, seed=0, image_id="x")
