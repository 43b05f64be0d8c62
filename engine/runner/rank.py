"""A rank from 1 on: `python -m engine.runner.rank`, started by rank 0, the engine process, for its share of the model.

The first line of stdin is a RankStart as JSON. stdin then stays open for as long as rank 0 lives. Passes come over the
link, a socket that is inherited; what goes wrong is said there in one line before the process ends.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import time
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.ranks.group import ProcessGroup
from engine.ranks.lifeline import die_with_parent, leave_with_parent, set_up_log
from engine.ranks.link import RankLink
from engine.ranks.processes import RankStart
from engine.runner.rank_parts import find_device, load_share, make_device_pass
from engine.runner.ranked import RankShare, follow

log = logging.getLogger("lightcone.engine")

RANK_0_SECONDS = 0.3
"""Time for the end of rank 0, or of another rank, to be noticed before its consequences are told."""


def main() -> int:
    """Entry point. Exits 0 when rank 0 has no more to run, 1 after a failure that it has told."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up_log()
    start = msgspec.json.decode(sys.stdin.buffer.readline(), type=RankStart)
    leave_with_parent()
    link = RankLink(socket.socket(fileno=start.link))
    try:
        run(start, link)
    except EngineError as error:
        return _failed(link, str(error))
    except Exception as error:
        code = _failed(link, f"failed: {type(error).__name__}: {error}".splitlines()[0])
        log.exception("rank %d failed", start.rank)
        return code
    return 0


def run(start: RankStart, link: RankLink) -> None:
    """Loads this rank's share and runs passes until there are no more."""
    config = start.config
    group = ProcessGroup(start.rank, config.tensor_parallel_size)
    device = find_device(config, group)
    model = load_share(config, device, group)
    group.join(Path(start.store), device)
    made = make_device_pass(config, model, device)
    follow(RankShare(made.device_pass, group, model.spec.banned_token_ids), link.receive)


def _failed(link: RankLink, message: str) -> int:
    """Tells rank 0. Where that is what has failed, this process ends with it meanwhile, without a word."""
    time.sleep(RANK_0_SECONDS)
    with contextlib.suppress(OSError):
        link.send(message.encode())
    return 1


if __name__ == "__main__":
    sys.exit(main())
