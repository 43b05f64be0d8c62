"""The deployment files against the server and against each other. Needs none of the programs they are for."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import yaml

from server.operation.config import ServerConfig, load_config
from server.operation.metrics import Metrics
from tests.http_helpers import ROOT
from tests.ops.processes import CONFIGS, DRAIN_DELAY

DOCKERFILE = (ROOT / "Dockerfile").read_text()
HAPROXY = (CONFIGS / "haproxy.cfg").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
REPLICAS = ("replica-1", "replica-2")
GOODBYE_SECONDS = 10
"""The server's own last steps after a drain: telling who is left, closing connections, ending the engine."""


def instructions(name: str) -> list[str]:
    """The arguments of the Dockerfile's instructions of one name, continuation lines joined."""
    text = DOCKERFILE.replace("\\\n", " ")
    return [line.removeprefix(f"{name} ").strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def lightcone_settings(environment: dict[str, Any]) -> ServerConfig:
    """The server's configuration from the LIGHTCONE_* variables of a deployment. Raises ConfigError."""
    given = {name: default_of(str(value)) for name, value in environment.items() if value is not None}
    return load_config({}, {name: value for name, value in given.items() if name.startswith("LIGHTCONE_")}).server


def default_of(value: str) -> str:
    """`${NAME:-default}` as Compose reads it where NAME is not set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def seconds(text: str) -> float:
    """A duration such as 80s or 500ms."""
    number, unit = re.fullmatch(r"([\d.]+)(ms|s|m)?", text).groups()
    return float(number) * {"ms": 0.001, "s": 1, "m": 60, None: 0.001}[unit]


@contextmanager
def answering(path: str, status: int) -> Iterator[int]:
    """A server on a port of its own that answers one path with one status, and others with 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == path else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def run_probe(code: str, port: int) -> int:
    """The exit status of a container's health check, in the environment of a container behind a proxy."""
    env = os.environ | {"LIGHTCONE_PORT": str(port), "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=30)
    return done.returncode


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_checks_tell_a_good_server_from_a_bad_one(path: str, status: int, healthy: bool) -> None:
    """Else a dead container counts as healthy, or a good one is never sent any traffic."""
    if path == "/health":
        (check,) = instructions("HEALTHCHECK")
        code = json.loads(check[check.index("CMD ") + 4 :])[2]
    else:
        code = COMPOSE["services"]["replica-1"]["healthcheck"]["test"][3]
    with answering(path, status) as port:
        assert (run_probe(code.replace("8000", str(port)), port) == 0) is healthy


def test_the_image_is_made_of_files_that_exist() -> None:
    """Else the build fails, or it sends the whole checkout to the builder."""
    patterns = (ROOT / ".dockerignore").read_text().split("\n")
    allowed = [line.removeprefix("!") for line in patterns if line.startswith("!")]
    copies = [shlex.split(line) for line in instructions("COPY") if not line.startswith("--from")]
    sources = [source.rstrip("/") for copy in copies for source in copy[:-1]]
    assert {"server", "engine", "constraints.txt"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed), f"{source} is not let through"
    assert list(CONFIGS.glob("*.toml")), "COPY configs/ would find nothing"


def test_the_image_runs_the_server_itself_without_rights() -> None:
    """Else a shell swallows SIGTERM and every stop loses requests, or a break-in is root."""
    assert json.loads(instructions("ENTRYPOINT")[-1]) == ["tini", "--", "lightcone"]
    assert json.loads(instructions("CMD")[-1]) == ["serve"]
    assert instructions("USER")[-1] == "10001:10001"
    variables = dict(re.findall(r"(LIGHTCONE_\w+)=(\S+)", DOCKERFILE))
    assert lightcone_settings(variables).host == "0.0.0.0"


@pytest.mark.parametrize("service", REPLICAS)
def test_compose_gives_a_replica_time_to_leave(service: str) -> None:
    """Else Docker kills a replica in the middle of its answers, or it refuses work before HAProxy has noticed."""
    replica = COMPOSE["services"][service]
    config = lightcone_settings(replica["environment"])
    assert config.drain_delay == DRAIN_DELAY, "the operation tests show it for another delay"
    needed = config.drain_delay + config.drain_timeout + GOODBYE_SECONDS
    assert seconds(replica["stop_grace_period"]) >= needed
    assert replica["read_only"]
    assert replica["tmpfs"][0].startswith("/tmp:")


def test_haproxy_waits_longer_than_the_server() -> None:
    """Else the load balancer cuts off long answers that the server would have finished, or notices a drain too late."""
    timeouts = dict(re.findall(r"^ +timeout ([\w-]+) +(\w+)", HAPROXY, re.MULTILINE))
    config = lightcone_settings(COMPOSE["services"]["replica-1"]["environment"])
    assert seconds(timeouts["server"]) > config.request_timeout
    assert seconds(timeouts["client"]) > config.request_timeout
    assert seconds(timeouts["http-keep-alive"]) < config.keep_alive
    inter, fast, fall = re.search(r"inter (\w+) fastinter (\w+) .*fall (\d+)", HAPROXY).groups()
    noticed = seconds(inter) + (int(fall) - 1) * seconds(fast) + seconds(timeouts["check"])
    assert noticed < config.drain_delay


def test_the_parts_of_the_compose_file_find_each_other() -> None:
    """Else the load balancer or the dashboards start and show nothing."""
    services = COMPOSE["services"]
    names = re.findall(r"presetenv LB_REPLICA_\d +(\S+)", HAPROXY)
    assert names == [f"{service}:8000" for service in REPLICAS]
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in prometheus_config()["scrape_configs"]}
    assert jobs == {"lightcone": names, "haproxy": ["haproxy:8405"]}
    mounts = [mount.split(":") for service in services.values() for mount in service.get("volumes", ())]
    for source, *_ in mounts:
        assert (ROOT / source).exists() if source.startswith("./") else source in COMPOSE["volumes"], source
    folders = {source: target for source, target, *_ in mounts}
    provider = grafana("provisioning/dashboards/lightcone.yaml")["providers"][0]
    assert provider["options"]["path"] == folders["./configs/grafana/dashboards"]


@pytest.mark.parametrize("overlay", [None, "configs/compose.cuda.yaml"], ids=["cpu", "cuda"])
def test_compose_itself_accepts_the_file(overlay: str | None) -> None:
    """Else `docker compose up` ends with a message about the file."""
    commands = [["docker", "compose"], ["docker-compose"]]
    usable = [
        command
        for command in commands
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0
    ]
    if not usable:
        pytest.skip("no `docker compose` and no `docker-compose` here")
    files = ["-f", "docker-compose.yml", *(("-f", overlay) if overlay else ())]
    command = [*usable[0], *files, "config", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_kubernetes_gives_a_pod_time_to_leave() -> None:
    """Else a rollout kills pods in the middle of their answers, or sends traffic to one that has no model yet."""
    documents = {doc["kind"]: doc for doc in yaml.safe_load_all((CONFIGS / "kubernetes.yaml").read_text())}
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    config = lightcone_settings({item["name"]: item["value"] for item in container["env"]})
    pause = float(re.search(r"sleep\((\d+)\)", container["lifecycle"]["preStop"]["exec"]["command"][-1])[1])
    needed = pause + config.drain_delay + config.drain_timeout + GOODBYE_SECONDS
    assert pod["terminationGracePeriodSeconds"] >= needed
    assert config.drain_delay > container["readinessProbe"]["periodSeconds"]
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert documents["Service"]["spec"]["selector"] == documents["Deployment"]["spec"]["selector"]["matchLabels"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def grafana(path: str) -> Any:
    """One of Grafana's files."""
    return yaml.safe_load((CONFIGS / "grafana" / path).read_text())


def prometheus_config() -> Any:
    """Prometheus' file."""
    return yaml.safe_load((CONFIGS / "prometheus.yml").read_text())


def alert_rules() -> Any:
    """The alerts beside it."""
    return yaml.safe_load((CONFIGS / "prometheus-alerts.yml").read_text())


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    """Else a metric that was renamed leaves an empty panel behind."""
    names = set(re.findall(r"^# TYPE (\w+) \w+", Metrics("m").render().decode(), re.MULTILINE))
    board = grafana("dashboards/lightcone.json")
    asked = {
        name
        for panel in board["panels"]
        for target in panel.get("targets", ())
        for name in re.findall(r"lightcone_\w+", target["expr"])
    }
    histograms = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked if name not in names}
    assert histograms <= names
    assert len(asked) > 25


def test_alerts_ask_for_metrics_that_exist() -> None:
    """Else an alert whose metric was renamed never fires again, and nobody hears of it."""
    page = Metrics("m").render().decode()
    names = set(re.findall(r"^# TYPE (\w+) \w+", page, re.MULTILINE))
    rules = [rule for group in alert_rules()["groups"] for rule in group["rules"]]
    asked = {name for rule in rules for name in re.findall(r"lightcone_\w+", rule["expr"])}
    assert {name if name in names else re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} <= names
    assert {
        "lightcone_engine_up", "lightcone_engine_restarts_total", "lightcone_requests_rejected_total",
        "lightcone_kv_cache_usage_ratio", "lightcone_nan_logits_total", "lightcone_time_to_first_token_seconds_bucket",
    } <= asked  # fmt: skip
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    jobs = {job["job_name"] for job in prometheus_config()["scrape_configs"]}
    assert {job for rule in rules for job in re.findall(r'job="(\w+)"', rule["expr"])} <= jobs


def test_prometheus_finds_its_alerts() -> None:
    """Else it does not start, or starts without them."""
    folder = "/etc/prometheus/"
    mounts = [mount.split(":") for mount in COMPOSE["services"]["prometheus"]["volumes"]]
    mounted = {target.removeprefix(folder): source for source, target, *_ in mounts}
    for file in prometheus_config()["rule_files"]:
        assert (ROOT / mounted[file]).samefile(CONFIGS / file)


def test_prometheus_accepts_its_alerts() -> None:
    """A rule that it cannot read keeps all of them from being loaded."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool here")
    done = subprocess.run([program, "check", "rules", CONFIGS / "prometheus-alerts.yml"], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_the_dashboard_fits_its_data_source_and_its_page() -> None:
    """Else Grafana says that a data source is missing, averages over too few samples, or draws panels over panels."""
    board = grafana("dashboards/lightcone.json")
    (source,) = grafana("provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["jsonData"]["timeInterval"] == prometheus_config()["global"]["scrape_interval"]
    chosen, *variables = board["templating"]["list"]  # a variable is filled before those that stand after it
    assert (chosen["name"], chosen["type"], chosen["query"]) == ("datasource", "datasource", source["type"])
    assert all(variable["datasource"]["uid"] == "${datasource}" for variable in variables)
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}", panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
