"""Two replicas behind HAProxy with the repository's configuration: what clients see of it, and what they must not."""

from __future__ import annotations

import itertools
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.http_helpers import metric_total, wait_for
from tests.ops.conftest import Fleet
from tests.ops.load import PROMPT, Load, stream
from tests.ops.processes import DRAIN_DELAY, Balancer, Replica, free_port

pytestmark = [pytest.mark.ops, pytest.mark.timeout(300)]

LONG = {"prompt": PROMPT, "decoding": "ar", "ignore_eos": True, "seed": 1}


def client_of(url: str, timeout: float = 30.0) -> httpx.Client:
    """A client of one address, whatever proxies the environment names."""
    return httpx.Client(base_url=url, timeout=timeout, trust_env=False)


def test_streams_arrive_as_they_are_made(fleet: Fleet) -> None:
    """Else a user behind the load balancer stares at nothing and then gets the whole answer at once."""
    with client_of(fleet.url) as client:
        started = time.monotonic()
        times = [chunk.at for chunk in stream(client, {**LONG, "max_tokens": 300})]
    whole = times[-1] - started
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(times) > 50
    assert times[0] - started < whole / 4, "the first chunk was held back"
    assert max(gaps) < whole / 4, "chunks were held back and came in a lump"


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_frees_its_place(fleet: Fleet, streamed: bool) -> None:
    """Else answers that nobody waits for keep the replicas busy, and those who do wait queue behind them."""
    left = ("lightcone_requests_total", 'status="499"')
    before = sum(metric_total(replica.metrics(), *left) for replica in fleet.replicas)
    body = {**LONG, "max_tokens": 900}
    with client_of(fleet.url, timeout=1.0) as client:
        if streamed:
            next(stream(client, body))
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/completions", json=body)

    def dropped() -> bool:
        pages = [replica.metrics() for replica in fleet.replicas]
        gone = sum(metric_total(page, *left) for page in pages)
        return gone == before + 1 and sum(metric_total(page, "lightcone_requests_running") for page in pages) == 0

    wait_for("the replica to drop the sequence", dropped, 3)


def test_both_replicas_work(fleet: Fleet) -> None:
    """Else half of what was paid for stands idle."""
    before = [metric_total(replica.metrics(), "lightcone_requests_total") for replica in fleet.replicas]
    with Load(fleet.url, workers=2).running() as load:
        time.sleep(3)
    done = [
        metric_total(replica.metrics(), "lightcone_requests_total") - count
        for replica, count in zip(fleet.replicas, before, strict=True)
    ]
    assert load.failures == []
    assert min(done) >= len(load.outcomes) / 10, f"requests by replica: {done}"


def test_a_rolling_restart_loses_nothing(fleet: Fleet) -> None:
    """Else every update of the server costs some users their answers."""
    retries = metric_total(fleet.balancer.metrics(), "haproxy_backend_retry_warnings_total", 'proxy="replicas"')
    with Load(fleet.url, workers=4).running() as load:
        for replica in fleet.replicas:
            restart(replica, fleet.balancer)
        time.sleep(1)
    assert load.failures == []
    assert len(load.outcomes) > 30, "too little load to show anything"
    after = metric_total(fleet.balancer.metrics(), "haproxy_backend_retry_warnings_total", 'proxy="replicas"')
    assert after == retries, "it was the second try that saved requests: the load balancer noticed too late"


def restart(replica: Replica, balancer: Balancer) -> None:
    """Restarts a replica while it is answering, and returns once it is in rotation again."""
    wait_for("work on the replica", lambda: metric_total(replica.metrics(), "lightcone_requests_running") > 0, 20)
    signalled = time.monotonic()
    replica.signal(signal.SIGTERM)
    wait_for("/ready to turn", lambda: httpx.get(f"{replica.url}/ready", timeout=2).status_code == 503, 2)
    balancer.wait_in_rotation(1)
    noticed = time.monotonic() - signalled
    assert noticed < DRAIN_DELAY, f"the load balancer needed {noticed:.1f} s; new work was being refused by then"
    assert replica.wait(45) == 0, replica.tail()
    replica.start()
    replica.wait_ready()
    balancer.wait_in_rotation(2)


def test_a_killed_replica_takes_only_its_own_work_along(fleet: Fleet) -> None:
    """Else one crash is an outage. What it was answering may be lost, but its clients are told or can tell."""
    workers = 4
    victim = fleet.replicas[0]
    with Load(fleet.url, workers).running() as load:
        wait_for("work on the replica", lambda: metric_total(victim.metrics(), "lightcone_requests_running") > 0, 20)
        victim.signal(signal.SIGKILL)
        killed = time.monotonic()
        victim.wait(5)
        time.sleep(4)
    assert len(load.failures) <= workers
    assert [outcome for outcome in load.failures if outcome.started > killed + 0.2] == [], "a later request was lost"
    assert [outcome for outcome in load.outcomes if outcome.started > killed + 1], "nothing was asked after the kill"


def test_the_proxy_keeps_ids_and_hides_metrics(fleet: Fleet) -> None:
    """Else a report with a request id leads nowhere, and anyone can read the replicas' numbers."""
    body = {"prompt": PROMPT, "max_tokens": 1}
    with client_of(fleet.url) as client:
        given = client.post("/v1/completions", json=body, headers={"x-request-id": "from-the-client"})
        made = client.post("/v1/completions", json=body)
        hidden = [client.get(path).status_code for path in ("/metrics", "/%6detrics", "/metrics?x=1")]
    assert given.headers["x-request-id"] == "from-the-client"
    assert f"{{{made.headers['x-request-id']}}}" in fleet.balancer.log.read_text()
    assert hidden == [404, 404, 404]


def test_no_replica_at_all_is_an_error_clients_understand(tmp_path: Path) -> None:
    """Else an SDK sees an HTML page where it expects OpenAI's error object, and does not know when to come back."""
    balancer = Balancer(tmp_path, (f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"))
    balancer.start()
    try:
        balancer.wait_in_rotation(0)
        response = httpx.get(f"{balancer.url}/v1/models", timeout=10)
    finally:
        balancer.stop()
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
