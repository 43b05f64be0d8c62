"""A bar on the terminal while a model loads."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from server.operation.loading import Loading, LoadProgress, described
from server.operation.logs import follow_standard_error


class LoadDisplay:
    """Shows a model's progress on standard error, which must be a terminal, and takes it away again.

    Lines that are logged meanwhile stand above the bar.
    """

    def __init__(self, loading: Loading) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),
            transient=True,
            redirect_stdout=False,
        )
        self._name = loading.name
        self._task = self._bar.add_task(f"loading {loading.name}", total=None)
        self._shown = False
        loading.on_change = self.show

    def show(self, progress: LoadProgress | None) -> None:
        """Shows how far it is; None: takes the bar away."""
        if progress is None:
            self.stop()
            return
        if not self._shown:
            self._shown = True
            self._bar.reset(self._task)
            self._bar.start()
            follow_standard_error()  # the bar stands in its place, and lets lines through
        self._bar.update(
            self._task,
            description=f"loading {self._name}: {described(progress)}",
            total=progress.total_bytes or None,
            completed=progress.bytes,
        )

    def stop(self) -> None:
        """Takes the bar away, if it is there."""
        if self._shown:
            self._shown = False
            self._bar.stop()
            follow_standard_error()
