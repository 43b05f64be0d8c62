"""The private directory that holds the socket to the engine: short enough for a socket's path, and cleaned up later."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

PREFIX = "lightcone-engine-"
LOCK = "lock"
SOCKET = "engine.sock"
MAX_SOCKET_PATH = 107
"""Bytes of the path of a Unix socket (sun_path, without its terminating zero)."""
_SUFFIX_LENGTH = 8  # of tempfile's names


class SocketDirectory:
    """A directory of mode 0700 with a lock that this process holds for as long as it lives, however it ends.

    So the next server can tell which directories are left from processes that were killed, in other containers that
    share the folder, too. Raises OSError where no folder for temporary files can be used.
    """

    def __init__(self) -> None:
        base = _short_folder()
        remove_stale(base)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        # It gets its name once it is locked: a lock that is not held means a process that is gone.
        fresh = self.path / "lock.new"
        self._lock = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fresh.rename(self.path / LOCK)

    @property
    def endpoint(self) -> str:
        """The socket's address for ZeroMQ."""
        return f"ipc://{self.path / SOCKET}"

    def remove(self) -> None:
        """Removes the directory and what is in it. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def remove_stale(base: Path) -> None:
    """Removes the directories of this user's servers that no longer run."""
    with contextlib.suppress(OSError):
        for path in base.glob(f"{PREFIX}*"):
            if _is_ours(path) and not _is_locked(path / LOCK):
                shutil.rmtree(path, ignore_errors=True)


def _short_folder() -> Path:
    """The folder for temporary files, or another one where its name is too long for a socket below it."""
    wanted = Path(tempfile.gettempdir())
    for base in (wanted, Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):
        length = len(os.fsencode(base / f"{PREFIX}{'x' * _SUFFIX_LENGTH}" / SOCKET))
        if length <= MAX_SOCKET_PATH and os.access(base, os.W_OK | os.X_OK):
            return base
    return wanted


def _is_ours(path: Path) -> bool:
    """A directory, not a link, that this user made for himself alone."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _is_locked(lock: Path) -> bool:
    """Whether a process holds the lock, or is about to: a directory without one is just being made."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
