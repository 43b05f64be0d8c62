"""The directory of the engine's socket: short enough, private, and gone at the latest when the next server starts."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from server.engine_link.directory import LOCK, PREFIX, SocketDirectory, remove_stale
from tests.server.processes import server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "t"
    base.mkdir()
    monkeypatch.setattr("server.engine_link.directory.tempfile.gettempdir", lambda: str(base))
    monkeypatch.setattr("server.engine_link.directory.MAX_SOCKET_PATH", 4096)
    return base


def open_files(pid: int) -> list[str]:
    """What a process has open. A connection may be closed while they are listed."""
    targets = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            targets.append(os.readlink(path))
    return targets


@pytest.mark.parametrize("length", [40, 76, 200])
def test_a_server_starts_whatever_the_length_of_the_temporary_folder(tmp_path: Path, length: int) -> None:
    """The path of a Unix socket has at most 107 bytes; test runners and batch systems have long folders."""
    folder = tmp_path / ("x" * length)
    folder.mkdir()
    with server(["tests.serve_with_fake_engine", "echo"], env={"TMPDIR": str(folder)}) as process:
        assert process.complete().status_code == 200
        [lock] = {Path(target) for target in open_files(process.process.pid) if PREFIX in target}
        assert lock.parent.stat().st_mode & 0o777 == 0o700
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(20) == 0
        assert not lock.parent.exists()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose sockets have paths short enough: it is used."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_what_a_killed_server_left_is_removed_by_the_next_one(short_folder: Path) -> None:
    folder = short_folder
    argv, env = ["tests.serve_with_fake_engine", "echo"], {"TMPDIR": str(folder)}
    with server(argv, env=env) as process:
        [left] = folder.glob(f"{PREFIX}*")
        process.process.kill()
        process.process.wait(10)
    assert left.exists()
    with server(argv, env=env):
        [used] = folder.glob(f"{PREFIX}*")
        assert used != left


def test_directories_in_use_and_of_others_stay(folder: Path) -> None:
    """Two servers share a folder, and so may other programs and other users."""
    used = SocketDirectory()
    made = folder / f"{PREFIX}being-made"
    made.mkdir(mode=0o700)
    readable = folder / f"{PREFIX}readable"
    readable.mkdir(mode=0o755)
    (readable / LOCK).touch()
    target = folder / "target"
    target.mkdir(mode=0o700)
    (target / LOCK).touch()
    link = folder / f"{PREFIX}link"
    link.symlink_to(target)
    stale = folder / f"{PREFIX}stale"
    stale.mkdir(mode=0o700)
    (stale / LOCK).touch()
    remove_stale(folder)
    assert not stale.exists()
    assert all(path.exists() for path in (used.path, made, readable, link, target / LOCK))
    used.remove()
    used.remove()
    assert not used.path.exists()
