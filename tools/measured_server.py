"""A server process for the tools that measure one, and figures of processes as seen from outside."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Self

import httpx

from server.child_server import ChildServer, ServerStartError

START_SECONDS = 120.0


class MeasuredServer(ChildServer):
    """`lightcone serve`, ready from the beginning of its `with` block on. Its log stays for the user to read."""

    def __init__(self, *options: str) -> None:
        self.log = Path(tempfile.mkstemp(prefix="lightcone-", suffix=".log")[1])
        super().__init__(options, log=self.log)

    def __enter__(self) -> Self:
        """Raises RuntimeError if it does not start."""
        try:
            self.wait_ready(START_SECONDS)
        except ServerStartError as error:
            self.kill()
            raise RuntimeError(f"the server {error}; its log is {self.log}") from None
        except BaseException:
            self.kill()
            raise
        return self

    @property
    def engine(self) -> int | None:
        """The id of the engine process; None while there is none."""
        for pid in children(self.pid):
            try:
                if b"engine.process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
            except OSError:
                continue
        return None

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = httpx.get(f"{self.url}/metrics", timeout=10, trust_env=False).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"lightcone_{name}{{"))


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still live."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def rss_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
