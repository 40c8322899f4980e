"""Which samples are drawn."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence

from edgevlm_deploy.datasets import Sample
from edgevlm_deploy.datasets.disjoint import place
from edgevlm_deploy.errors import DataError


def draw(samples: Sequence[Sample], count: int, seed: int, balanced: bool) -> tuple[Sample, ...]:
    """`count` samples without repetition; the order of `samples` does not matter.

    Balanced: the kinds of question take turns (a kind that runs out drops out), so that no kind
    dominates the ranges. Either way a picture comes a second time only when its kind has no fresh one left.

    Raises DataError when there are fewer samples than asked for.
    """
    if len(samples) < count:
        raise DataError(
            f"calibration asks for {count} samples, the data has {len(samples)}. "
            "Give more data or lower calibration.samples."
        )
    used: Counter[str] = Counter()
    queues = [_Queue(group, seed) for group in _groups(samples, balanced)]
    drawn: list[Sample] = []
    while len(drawn) < count:
        drawn += [queue.next(used) for queue in queues[: count - len(drawn)]]
        queues = [queue for queue in queues if queue]
    return tuple(drawn)


class _Queue:
    """Samples of one kind; those whose picture was used least come first, then by hash."""

    def __init__(self, samples: Sequence[Sample], seed: int) -> None:
        self._waiting = [(0, place(seed, one.id), one.id, one) for one in samples]
        heapq.heapify(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def next(self, used: Counter[str]) -> Sample:
        """Take the next sample and count its picture in `used`, which other queues raise as well."""
        while True:
            times, where, identity, sample = heapq.heappop(self._waiting)
            if times == used[sample.cluster]:
                used[sample.cluster] += 1
                return sample
            heapq.heappush(self._waiting, (used[sample.cluster], where, identity, sample))


def _groups(samples: Sequence[Sample], balanced: bool) -> list[list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group if balanced else "", []).append(sample)
    return [groups[name] for name in sorted(groups)]
