"""Digests of what reaches the graphs, for comparing two machines: `python pixels.py BUNDLE --pictures N`.

Prints JSON: condition → SHA-256 over the bytes of N pictures of the bundle and of one larger made-up picture
(so that blur radii above and below the published ones occur) after that corruption, and "inputs" → SHA-256
over pixel values and token ids of one question per condition.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from edgevlm_runner.bundle import Bundle, open_bundle
from edgevlm_runner.corrupt import CONDITIONS, SEVERITIES, corrupt
from edgevlm_runner.inputs import from_item, load_tokenizer
from edgevlm_runner.preprocess import load_image
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pictures", type=int, default=10)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    digests = corrupted(bundle, arguments.pictures)
    digests["inputs"] = inputs(bundle)
    json.dump(digests, sys.stdout, indent=1)


def corrupted(bundle: Bundle, pictures: int) -> dict[str, str]:
    seed = int(bundle.manifest["seeds"]["evaluation"])
    names = sorted({item.image for item in bundle.items if item.image})[:pictures]
    opened: list[Image.Image] = [load_image(bundle.path(name)) for name in names]
    opened.append(_camera_picture())
    digests = {}
    for corruption in CONDITIONS:
        for severity in SEVERITIES:
            sha256 = hashlib.sha256()
            for number, picture in enumerate(opened):
                changed = corrupt(picture, corruption, severity, seed=seed, image_id=str(number))
                sha256.update(changed.tobytes())
            digests[f"{corruption}/{severity}"] = sha256.hexdigest()
    return digests


def inputs(bundle: Bundle) -> str:
    """The first item of every condition, corrupted, preprocessed and tokenised."""
    first = {item.condition: item for item in reversed(bundle.items)}
    seed = int(bundle.manifest["seeds"]["evaluation"])
    tokenizer = load_tokenizer(bundle.path("tokenizer/tokenizer.json"))
    sha256 = hashlib.sha256()
    for condition in sorted(first):
        made = from_item(first[condition], bundle.root, seed, bundle.model, tokenizer)
        if made.pixel_values is not None:
            sha256.update(made.pixel_values.tobytes())
        sha256.update(made.input_ids.tobytes())
    return sha256.hexdigest()


def _camera_picture() -> Image.Image:
    """480 × 360 pixels with ramps and fine structure, from integers alone."""
    y, x = np.mgrid[0:360, 0:480]
    return Image.fromarray(np.stack([x % 256, 2 * y % 256, x * y % 256], axis=-1).astype(np.uint8))


if __name__ == "__main__":
    main()
