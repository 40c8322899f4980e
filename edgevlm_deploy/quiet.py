"""Keep the chatter of torch and its neighbours away from the user.

Their deprecation notices and missing-plugin messages are about their own code; what matters is
asserted by ours after each step. Set EDGEVLM_VERBOSE=1 to see everything.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

from edgevlm_deploy.errors import EdgeVlmError, MissingExtraError


@contextmanager
def libraries(prints: bool = False) -> Iterator[None]:
    """Drop warnings and log lines of libraries inside the block; with `prints`, what they print too, from
    Python or from C++."""
    with ExitStack() as silence:
        if not os.environ.get("EDGEVLM_VERBOSE"):
            silence.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            # Libraries set the levels of their own loggers on import; only the threshold for all holds.
            silence.callback(logging.disable, logging.root.manager.disable)
            logging.disable(logging.CRITICAL if prints else logging.WARNING)
            if prints:
                silence.enter_context(redirect_stdout(io.StringIO()))
                silence.enter_context(redirect_stderr(io.StringIO()))
                silence.enter_context(_descriptor_to_nowhere(1))
                silence.enter_context(_descriptor_to_nowhere(2))
        yield


@contextmanager
def toolkit(name: str, purpose: str, extra: str, failure: type[EdgeVlmError]) -> Iterator[None]:
    """Import and use one library in silence; its errors become ours.

    Raises MissingExtraError when it cannot be imported, `failure` for whatever else it raises itself.
    """
    with libraries(prints=True):
        try:
            yield
        except EdgeVlmError:
            raise
        except ImportError as error:
            raise MissingExtraError(
                f"{purpose} needs {name} ({error}): pip install 'edgevlm[{extra}]'"
            ) from error
        except Exception as error:
            raise failure(f"{name} failed: {type(error).__name__}: {error}") from error


@contextmanager
def _descriptor_to_nowhere(number: int) -> Iterator[None]:
    kept, nowhere = os.dup(number), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    try:
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)
        os.close(nowhere)
