"""VisionZip and ToMe as their papers describe them, token by token, against the matrices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from edgevlm_deploy.reduction import tome, visionzip

Floats = np.ndarray


def cosine(a: Floats, b: Floats) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def visionzip_groups(received: Floats, keys: Floats, kept: int) -> list[list[int]]:
    contextual = visionzip.contextual_tokens(kept)
    order = sorted(range(len(keys)), key=lambda i: -received[i])
    dominant, rest = order[: kept - contextual], sorted(order[kept - contextual :])
    targets = rest[:: len(rest) // contextual][:contextual] if contextual else []
    groups = {one: [one] for one in sorted(dominant + targets)}
    for one in rest:
        if targets and one not in targets:
            groups[max(targets, key=lambda target: cosine(keys[one], keys[target]))].append(one)
    return [sorted(group) for group in groups.values()]


def tome_groups(keys: Floats, kept: int) -> list[list[int]]:
    n = len(keys)
    groups = [[one] for one in range(n)]
    while len(groups) > kept:
        means = [keys[group].mean(0) for group in groups]
        even, odd = range(0, len(groups), 2), range(1, len(groups), 2)
        partner = {a: max(odd, key=lambda b: cosine(means[a], means[b])) for a in even}
        closest = sorted(even, key=lambda a: -cosine(means[a], means[partner[a]]))
        merged = closest[: min(max(1, n // tome.ROUNDS), len(groups) // 2, len(groups) - kept)]
        for a in merged:
            groups[partner[a]] = groups[partner[a]] + groups[a]
        groups = [group for place, group in enumerate(groups) if place not in merged]
    return [sorted(group) for group in groups]


def averaging(groups: list[list[int]], n: int) -> Floats:
    matrix = np.zeros((len(groups), n), np.float32)
    for row, group in enumerate(groups):
        matrix[row, group] = 1 / len(group)
    return matrix


@pytest.mark.parametrize(("n", "kept"), [(4, 1), (4, 3), (16, 2), (16, 8), (16, 12), (64, 21), (81, 9)])
def test_every_method_merges_what_its_paper_merges(n: int, kept: int) -> None:
    rng = np.random.default_rng(n + kept)
    keys = rng.normal(size=(2, n, 8)).astype(np.float32)
    received = rng.uniform(size=(2, n)).astype(np.float32)
    zipped = visionzip.merging(torch.from_numpy(received), torch.from_numpy(keys), kept).numpy()
    merged = tome.merging(torch.from_numpy(keys), kept).numpy()
    for tile in range(2):
        expected = averaging(visionzip_groups(received[tile], keys[tile], kept), n)
        np.testing.assert_allclose(zipped[tile], expected, atol=1e-6)
        np.testing.assert_allclose(merged[tile], averaging(tome_groups(keys[tile], kept), n), atol=1e-6)


def test_contextual_tokens_have_the_published_shares() -> None:
    assert [visionzip.contextual_tokens(kept) for kept in (64, 128, 192)] == [10, 20, 30]
    assert [visionzip.contextual_tokens(kept) for kept in (1, 2, 4)] == [0, 1, 1]


def test_rows_average_and_every_merged_token_counts() -> None:
    keys = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
    for kept, method in itertools.product((1, 5, 15), ("visionzip", "tome")):
        matrix = tome.merging(keys, kept) if method == "tome" else visionzip.merging(keys[..., 0], keys, kept)
        assert torch.allclose(matrix.sum(-1), torch.ones(1, kept))
        merged = kept if method == "visionzip" and kept == 1 else 16
        assert int((matrix > 0).sum()) == merged, "every token is in exactly one group"
