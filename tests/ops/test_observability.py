"""Prometheus and the dashboard over real replicas, with the repository's configuration."""

from __future__ import annotations

import json
import math
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.http_helpers import metric_total, wait_for
from tests.ops.conftest import Fleet
from tests.ops.load import PROMPT, ask, stream
from tests.ops.processes import CONFIGS, Process, free_port, program

pytestmark = [pytest.mark.ops, pytest.mark.timeout(300)]

DASHBOARD = CONFIGS / "grafana" / "dashboards" / "lightcone.json"
GRAFANA = {"$__rate_interval": "20s", "$model": ".+"}
"""What Grafana puts for its variables: four scrape intervals, and all models."""

TRAFFIC: tuple[dict[str, Any], ...] = (
    {"max_tokens": 32, "decoding": "speculative", "stream": True, "stream_options": {"include_drafts": True}},
    {"max_tokens": 32, "decoding": "diffusion", "stream": True, "stream_options": {"include_drafts": True}},
    {"max_tokens": 32, "decoding": "ar"},
    {"max_tokens": 32, "decoding": "auto"},
)
"""One request for each way of decoding, so that nothing on the dashboard stays empty for lack of an occasion."""
LONG = {"max_tokens": 128, "decoding": "ar", "prompt": PROMPT, "ignore_eos": True}
"""What runs while a request too many is refused."""


class Prometheus(Process):
    """Prometheus with the repository's own file; only its targets are replaced."""

    def __init__(self, directory: Path, fleet: Fleet) -> None:
        config = yaml.safe_load((CONFIGS / "prometheus.yml").read_text())
        targets = {"lightcone": [replica.address for replica in fleet.replicas]}
        targets["haproxy"] = [fleet.balancer.metrics_address]
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": targets.pop(job["job_name"])}]
        assert not targets, f"prometheus.yml has no job for {targets}"
        config["rule_files"] = [str(CONFIGS / file) for file in config["rule_files"]]
        self.file = directory / "prometheus.yml"
        self.file.write_text(yaml.safe_dump(config))
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        argv = [
            program("prometheus", "prometheus"), f"--config.file={self.file}", f"--web.listen-address={address}",
            f"--storage.tsdb.path={directory / 'data'}",
        ]  # fmt: skip
        super().__init__(argv, directory / "prometheus.log")

    def api(self, path: str, **params: str) -> Any:
        """The data of an answer of its HTTP API. Raises ValueError with what it objects to."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=10).json()
        if answer["status"] != "success":
            raise ValueError(answer["error"])
        return answer["data"]

    def finite(self, query: str) -> int:
        """How many series of a query have a value that can be drawn."""
        return sum(math.isfinite(float(series["value"][1])) for series in self.api("query", query=query)["result"])


@pytest.fixture(scope="module")
def prometheus(running_fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Started once for this file."""
    process = Prometheus(tmp_path_factory.mktemp("prometheus"), running_fleet)
    process.start()
    try:
        wait_for("Prometheus", lambda: httpx.get(f"{process.url}/-/ready", timeout=2).status_code == 200, 30)
        yield process
    finally:
        process.stop()


def round_of_traffic(fleet: Fleet) -> int:
    """Asks each replica for a little of everything, once with more choices than may wait. Returns the tokens."""
    for replica in fleet.replicas:
        with httpx.Client(base_url=replica.url, timeout=30, trust_env=False) as client:
            for seed, body in enumerate(TRAFFIC):
                assert ask(client, {"prompt": PROMPT, "ignore_eos": True, "seed": seed, **body}) is None
            running = stream(client, LONG)
            next(running)
            refused = client.post("/v1/completions", json={"prompt": PROMPT, "n": 64, "max_tokens": 4})
            assert refused.status_code == 429
            assert list(running)[-1].finish_reason == "length"
    return len(fleet.replicas) * sum(body["max_tokens"] for body in (*TRAFFIC, LONG))


def panel_queries() -> dict[str, str]:
    """Panel title and letter -> query, of the whole dashboard, as Grafana would send it."""
    queries: dict[str, str] = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for variable, value in GRAFANA.items():
                query = query.replace(variable, value)
            queries[f"{panel['title']} {target['refId']}"] = query
    return queries


def test_prometheus_accepts_its_configuration(fleet: Fleet, prometheus: Prometheus) -> None:
    """Else the monitoring does not start, which is noticed when it is needed."""
    command = [program("promtool", "prometheus"), "check", "config"]
    for file in (CONFIGS / "prometheus.yml", prometheus.file):
        done = subprocess.run([*command, str(file)], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_metrics_follow_prometheus_conventions(fleet: Fleet) -> None:
    """Else dashboards and alerts written by convention (base units, _total, help texts) misread the replicas."""
    round_of_traffic(fleet)
    page = fleet.replicas[0].metrics()
    command = [program("promtool", "prometheus"), "check", "metrics"]
    done = subprocess.run(command, input=page, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_replica_and_the_balancer_are_scraped(fleet: Fleet, prometheus: Prometheus) -> None:
    """Else the dashboard shows one half of the service as if it were all of it."""
    expected = {*(replica.address for replica in fleet.replicas), fleet.balancer.metrics_address}

    def scraped() -> bool:
        targets = prometheus.api("targets")["activeTargets"]
        return {target["labels"]["instance"] for target in targets if target["health"] == "up"} == expected

    wait_for("all targets to be up", scraped, 20)


def test_every_panel_has_data(fleet: Fleet, prometheus: Prometheus) -> None:
    """Else an operator looks at an empty panel in the middle of an incident."""
    queries = panel_queries()
    assert len(queries) > 30
    left = [variable for query in queries.values() for variable in re.findall(r"\$\w+", query)]
    assert not left, f"variables this test does not know: {left}"
    empty = queries
    for _ in range(25):
        round_of_traffic(fleet)
        empty = {name: query for name, query in empty.items() if not prometheus.finite(query)}
        if not empty:
            break
        time.sleep(2)
    assert not empty


def test_what_prometheus_sums_is_what_clients_got(fleet: Fleet, prometheus: Prometheus) -> None:
    """Else the throughput on the dashboard is not the throughput of the service."""
    name = "lightcone_generation_tokens_total"
    before = sum(metric_total(replica.metrics(), name) for replica in fleet.replicas)
    expected = before + round_of_traffic(fleet)

    def agrees() -> bool:
        result = prometheus.api("query", query=f"sum({name})")["result"]
        return bool(result) and float(result[0]["value"][1]) == expected

    wait_for(f"{expected:g} tokens in Prometheus", agrees, 15)


def test_the_model_can_be_chosen_on_the_dashboard(fleet: Fleet, prometheus: Prometheus) -> None:
    """Else the dashboard's selector is empty and with it every panel."""
    variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
    for variable in variables:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()
        wait_for(f"a value of {label}", lambda m=metric, n=label: bool(values(prometheus, m, n)), 20)


def values(prometheus: Prometheus, metric: str, label: str) -> list[str]:
    """What Grafana's `label_values(metric, label)` offers."""
    found: list[str] = prometheus.api(f"label/{label}/values", **{"match[]": metric})
    return found
