"""Progress bars on standard error; silent when that is not a terminal or output is for machines."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import TaskID


class Watcher(Protocol):
    """What a long step reports to."""

    def begin(self, title: str, total: int | None = None) -> None:
        """A new step starts; `total` is in its own unit, None when unknown."""

    def advance(self, amount: int = 1) -> None:
        """`amount` more units of the current step are done."""


class Silent:
    """A watcher that shows nothing."""

    def begin(self, title: str, total: int | None = None) -> None: ...

    def advance(self, amount: int = 1) -> None: ...


class Progress:
    """One line per step, the current one with a bar and the time left."""

    def __init__(self, quiet: bool = False) -> None:
        from rich import progress as rich
        from rich.console import Console

        self._bars = rich.Progress(
            rich.SpinnerColumn(finished_text="✓"),
            rich.TextColumn("{task.description}"),
            rich.BarColumn(bar_width=24),
            rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(),
            rich.TimeRemainingColumn(),
            # Bound to the stream, because noisy libraries have sys.stderr redirected.
            console=Console(file=sys.stderr),
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._complete()
        self._bars.stop()

    def begin(self, title: str, total: int | None = None) -> None:
        self._complete()
        self._task = self._bars.add_task(title, total=total)

    def advance(self, amount: int = 1) -> None:
        if self._task is not None:
            self._bars.advance(self._task, amount)

    def _complete(self) -> None:
        """A step without a known length ends as one of one."""
        if self._task is None:
            return
        total = self._bars.tasks[self._task].total or 1
        self._bars.update(self._task, total=total, completed=total)
        self._task = None
