"""A progress bar on stderr, when that is a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.records import Record
from loadtest.runner import Load, OnRecord


@contextmanager
def progress(label: str, load: Load, enabled: bool) -> Iterator[OnRecord]:
    """Shows requests done, failures and tokens so far; yields what to call with each record."""
    console = Console(stderr=True)
    if not enabled or not console.is_terminal:
        yield lambda record: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
    failed = tokens = done = 0
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as bars:
        task = bars.add_task(label, total=load.requests, said="")

        def on_record(record: Record) -> None:
            nonlocal failed, tokens, done
            done += 1
            failed += bool(record.error)
            tokens += record.completion_tokens or 0
            said = f"{done} done, {failed} failed, {tokens} tokens"
            bars.update(task, advance=1, said=said)

        yield on_record
