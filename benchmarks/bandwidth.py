"""The roof of decoding: how fast the threads together read memory that no cache holds.

`python -m benchmarks.bandwidth THREADS` answers each line on standard input with gigabytes per second.
"""

from __future__ import annotations

import sys
import time

BYTES = 1 << 29
PASSES = 3


def main() -> None:
    import torch

    torch.set_num_threads(int(sys.argv[1]))
    # The largest of 64-bit integers: of the reductions that torch has, the one that waits most for memory.
    values = torch.ones(BYTES // 8, dtype=torch.int64)
    print("{}", flush=True)
    for _ in sys.stdin:
        seconds = []
        for _ in range(PASSES):
            began = time.perf_counter()
            values.amax()
            seconds.append(time.perf_counter() - began)
        print(f'{{"gb_per_second": {BYTES / min(seconds) / 1e9}}}', flush=True)


if __name__ == "__main__":
    main()
