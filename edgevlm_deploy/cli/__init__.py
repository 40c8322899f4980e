"""The command line. It parses, calls the layer below and prints; heavy imports wait for a command."""

from __future__ import annotations

import sys

from edgevlm_deploy.cli import compilation, exploration, inspection, judging, listing, sweeping
from edgevlm_deploy.cli.application import EPILOG, app
from edgevlm_deploy.errors import EXIT_INTERRUPTED, EdgeVlmError

__all__ = [
    "EPILOG",
    "app",
    "compilation",
    "exploration",
    "inspection",
    "judging",
    "listing",
    "main",
    "sweeping",
]


def main() -> None:
    """Entry point: errors become one message on standard error and the exit code of their cause."""
    try:
        app()
    except EdgeVlmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as end:
        # Typer ends so when it is interrupted, without a word.
        if end.code == EXIT_INTERRUPTED:
            print("interrupted; finished stages are kept, run the same command to go on", file=sys.stderr)
        raise
