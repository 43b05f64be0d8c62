"""Two replicas behind HAProxy, once for all operation tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ops.processes import Balancer, Replica


@dataclass(frozen=True)
class Fleet:
    """What docker-compose.yml starts, less the dashboards."""

    replicas: tuple[Replica, Replica]
    balancer: Balancer

    @property
    def url(self) -> str:
        """Where clients go."""
        return self.balancer.url


@pytest.fixture(scope="session")
def running_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Started once, stopped at the end."""
    directory: Path = tmp_path_factory.mktemp("fleet")
    replicas = Replica(directory, 1), Replica(directory, 2)
    balancer = Balancer(directory, (replicas[0].address, replicas[1].address))
    try:
        for process in (*replicas, balancer):
            process.start()
        yield Fleet(replicas, balancer)
    finally:
        for process in (balancer, *replicas):
            process.stop()


@pytest.fixture
def fleet(running_fleet: Fleet) -> Fleet:
    """The fleet whole and in rotation, whatever the test before did to it."""
    for replica in running_fleet.replicas:
        if not replica.running:
            replica.start()
    for replica in running_fleet.replicas:
        replica.wait_ready()
    running_fleet.balancer.wait_in_rotation(2)
    return running_fleet
