"""The demo CLIP's pictures as a data set on disk: one JSON object a line.

    {"id": …, "group": "ring on sand", "image": "….png", "label": "red ring", "background": "sand",
     "split": "counter", "caption": "a photo of a small plain red ring on sand"}

A picture of none of the classes has `"ood": true` in place of label, background, split and caption; its group
is what it shows.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from edgevlm_deploy.artifacts import write_bytes_atomic, write_text_atomic
from edgevlm_deploy.demo.captions import full_caption
from edgevlm_deploy.demo.pictures import Picture, counterfactual, unseen_picture
from edgevlm_deploy.demo.scenes import Split


def write(split: Split, scenes: int, unseen: int, directory: Path) -> Path:
    """Each scene on its usual ground and on another one, then pictures from outside: `<split>.jsonl`."""
    name = split.name.lower()
    directory.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for index in range(scenes):
        for side, picture in zip(("common", "counter"), counterfactual(split, index), strict=True):
            thing = picture.things[0]
            rows.append(
                {
                    **_stored(picture, f"{name}-{index:06d}-{side}", directory),
                    "group": f"{thing.shape} on {picture.ground}",
                    "label": thing.name,
                    "background": picture.ground,
                    "split": side,
                    "caption": full_caption(picture).text,
                }
            )
    for index in range(unseen):
        kind, picture = unseen_picture(split, index)
        rows.append({**_stored(picture, f"{name}-{index:06d}-ood", directory), "group": kind, "ood": True})
    table = directory / f"{name}.jsonl"
    write_text_atomic(table, "".join(json.dumps(row) + "\n" for row in rows))
    return table


def _stored(picture: Picture, name: str, directory: Path) -> dict[str, str]:
    png = io.BytesIO()
    picture.image.save(png, "PNG")
    write_bytes_atomic(directory / f"{name}.png", png.getvalue())
    return {"id": name, "image": f"{name}.png"}
