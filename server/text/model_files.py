"""Finds a model's files: the packaged model, a directory, or a repository on the Hugging Face hub."""

from __future__ import annotations

import io
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import ModelLoadError
from engine.models.files import is_present, model_directory

BUILTIN = "builtin"

FetchWatcher = Callable[[int, int, int, int], None]
"""Is told the bytes fetched, those known of so far, and the same of files."""
FETCH_REPORT_SECONDS = 0.2
"""Least time between two reports of bytes alone."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PATTERNS = ["*.safetensors", "*.json", "*.jinja"]
"""The only files that are ever fetched: weights in the one format that runs no code, configuration, templates."""


def default_name(model: str) -> str:
    """The name by which a model is served when none is configured."""
    if model == BUILTIN or _is_repository(model):
        return model
    return Path(os.path.realpath(model)).name or model  # unlike resolve(), not upset by links in a circle


def resolve_model(model: str, watcher: FetchWatcher = lambda *progress: None) -> Path:
    """The directory of the model's files, fetched if need be; watcher: told how far that is, in any thread. Blocking.

    Raises ModelLoadError with one line, also for a broken link: what its name is spelled like is not fetched instead.
    """
    return _local(model) or _fetch(model, watcher)


def local_directory(model: str) -> Path:
    """The directory of the model's files if it is on this machine. Raises ModelLoadError with one line if not."""
    found = _local(model)
    if found is None:
        raise ModelLoadError(f"{model} is the name of a repository; only a directory can be looked at")
    return found


def _local(model: str) -> Path | None:
    """The directory that a model's name stands for; None for a repository's. Raises ModelLoadError for neither."""
    if model == BUILTIN:
        return model_directory(model)
    path = Path(model)
    if is_present(path):
        if path.is_dir():
            return path.resolve()
        raise ModelLoadError(f"{model} is a file; a model is a directory in a published layout")
    if not _is_repository(model):
        raise ModelLoadError(f"no such model directory: {model} (nor is it '{BUILTIN}' or shaped like org/name)")
    return None


def _is_repository(model: str) -> bool:
    return not os.path.exists(model) and _REPOSITORY.fullmatch(model) is not None


def _fetch(repository: str, watcher: FetchWatcher) -> Path:
    # Slow to import, and only needed here.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=_PATTERNS, tqdm_class=_bars(watcher)))
    except GatedRepoError:
        reason = "access to it must be granted first (and HF_TOKEN set)"
    except RepositoryNotFoundError:
        reason = "there is no such repository, or it is private and HF_TOKEN is not set"
    except LocalEntryNotFoundError:
        reason = "the hub cannot be reached and there is no copy in the local cache"
    except Exception as exc:  # the hub's client raises a wide family; to an operator the rest is one thing
        reason = " ".join(str(exc).split())[:200] or type(exc).__name__
    raise ModelLoadError(f"cannot fetch {repository} from the Hugging Face hub: {reason}")


def _bars(watcher: FetchWatcher) -> Any:
    """A class of progress bars for the hub's client that show nothing and tell the watcher instead.

    Of the client's bars those in bytes say the same in two ways (received, written); one counts files.
    """
    from tqdm.std import tqdm

    bars: list[Any] = []
    lock = threading.Lock()
    next_report, files_told = 0.0, -1

    def tell() -> None:
        nonlocal next_report, files_told
        now = time.monotonic()
        with lock:
            num_bytes, total = max(((bar.n, bar.total or 0) for bar in bars if bar.unit == "B"), default=(0, 0))
            num_files, files = max(((bar.n, bar.total or 0) for bar in bars if bar.unit != "B"), default=(0, 0))
            if now < next_report and num_files == files_told:
                return
            next_report, files_told = now + FETCH_REPORT_SECONDS, num_files
        watcher(int(min(num_bytes, total)), int(total), int(num_files), int(files))

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread that looks after bars

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **options | {"file": io.StringIO(), "disable": False})
            with lock:
                bars.append(self)

        def display(self, *args: Any, **options: Any) -> bool:
            return True

        def update(self, n: float | None = 1) -> bool | None:
            shown: bool | None = super().update(n)
            tell()
            return shown

    return Bar
