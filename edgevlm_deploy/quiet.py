"""Keep the chatter of torch and its neighbours away from the user.

Their deprecation notices and missing-plugin messages are about their own code; what matters is
asserted by ours after each step. Set EDGEVLM_VERBOSE=1 to see everything.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def libraries() -> Iterator[None]:
    """Drop warnings and everything below an error that libraries log inside the block."""
    if os.environ.get("EDGEVLM_VERBOSE"):
        yield
        return
    threshold = logging.root.manager.disable
    # torch sets its loggers' levels on import; only the threshold for all of them holds.
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(threshold)
