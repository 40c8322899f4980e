"""A smaller bundle of the same graphs: every n-th item, for machines that are slow because emulated.

It is a whole bundle with a digest of its own, so validation is not weakened: its verdict speaks of fewer
items, and gates that need more come out inconclusive.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from edgevlm_runner.bundle import EVIDENCE, ITEMS, MANIFEST, SEAL
from edgevlm_runner.contract import Answer, Item, read_jsonl, write_jsonl

from edgevlm_deploy import bundle
from edgevlm_deploy.artifacts import file_digest, pretty_json


def thin(path: Path, every: int, folder: Path) -> Path:
    """Unpack the bundle `path` to `folder`, which must not exist, and leave every n-th item in it."""
    bundle.unpack(path, folder)
    (folder / SEAL).unlink(missing_ok=True)
    shutil.rmtree(folder / EVIDENCE, ignore_errors=True)
    items = kept(read_jsonl(folder / ITEMS, Item), every)
    ids = {item.id for item in items}
    answers = [one for one in read_jsonl(folder / "reference.jsonl", Answer) if one.item_id in ids]
    write_jsonl(folder / ITEMS, items)
    write_jsonl(folder / "reference.jsonl", answers)
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in (ITEMS, "reference.jsonl"):
        manifest["files"][name] = {
            "sha256": file_digest(folder / name),
            "bytes": (folder / name).stat().st_size,
        }
    (folder / MANIFEST).write_text(pretty_json(manifest))
    bundle.verify(folder)
    return folder


def kept(items: Sequence[Item], every: int) -> list[Item]:
    """Every n-th item of each condition, and the clean items that corrupted ones are variants of."""
    seen: dict[str, int] = {}
    chosen: set[str] = set()
    for item in items:
        number = seen[item.condition] = seen.get(item.condition, -1) + 1
        if number % every == 0:
            chosen |= {item.id, item.base_id}
    assert {item.condition for item in items if item.id in chosen} == set(seen)
    return [item for item in items if item.id in chosen]
