"""The Helm chart: what it renders is what Kubernetes takes, and what the server takes, for values as people set them.

`helm` renders; `kubernetes-validate` holds the result against Kubernetes' published schemas. Without `helm` the example
that was rendered from the chart is still checked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.operation.config import Config, load_config, option_types
from tools.kubernetes_example import CHART, EXAMPLE, example, render

VERSIONS = ("1.29", "1.33", "1.37")
"""Of Kubernetes: from the oldest whose schemas matter to the newest that the validator has."""
OTHERS = {"ScaledObject", "ServiceMonitor"}
"""Kinds that are not Kubernetes' own."""
GOODBYE_SECONDS = 10
"""See tests/ops/test_files.py."""

PODS = "headless Service"
"""By which a balancer finds the pods themselves."""

Documents = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def helm() -> str:
    path = shutil.which("helm")
    if path is None:
        pytest.skip("helm is not installed")
    return path


def documents_of(text: str) -> Documents:
    """By kind: the chart makes one of each at most."""
    documents = [document for document in yaml.safe_load_all(text) if document is not None]
    kinds = [PODS if doc.get("spec", {}).get("clusterIP") == "None" else doc["kind"] for doc in documents]
    assert len(set(kinds)) == len(kinds)
    return dict(zip(kinds, documents, strict=True))


def check_by_schema(documents: Documents) -> None:
    """Every field is one that Kubernetes knows, and of its type."""
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for kind, document in documents.items():
        for version in VERSIONS:
            if kind not in OTHERS:
                validator.validate(document, version, strict=True)


def container_of(documents: Documents) -> dict[str, Any]:
    [container] = documents["Deployment"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


def config_of(documents: Documents) -> Config:
    """The server's configuration in the pod. Raises ConfigError."""
    given = {item["name"]: item["value"] for item in container_of(documents)["env"] if "value" in item}
    return load_config({}, {name: value for name, value in given.items() if name.startswith("LIGHTCONE_")})


def check_parts(documents: Documents) -> None:
    """What refers to something else finds it."""
    pod = documents["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    selectors = [documents["Deployment"]["spec"]["selector"]["matchLabels"], documents["Service"]["spec"]["selector"]]
    if "PodDisruptionBudget" in documents:
        selectors.append(documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"])
    if PODS in documents:
        selectors.append(documents[PODS]["spec"]["selector"])
    for selector in selectors:
        assert selector.items() <= labels.items()
    container = container_of(documents)
    assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["spec"]["volumes"]}
    assert documents["Service"]["spec"]["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v]
    if "PersistentVolumeClaim" in documents:
        assert claims == [documents["PersistentVolumeClaim"]["metadata"]["name"]]
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        if kind in documents:
            assert documents[kind]["spec"]["scaleTargetRef"]["name"] == documents["Deployment"]["metadata"]["name"]
            assert "replicas" not in documents["Deployment"]["spec"], "a release would undo what the autoscaler did"


def check_end(documents: Documents) -> None:
    """A pod is not killed before its server has said goodbye."""
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    command = container_of(documents)["lifecycle"]["preStop"]["exec"]["command"][-1]
    pause = float(command.removeprefix("import time; time.sleep(").removesuffix(")"))
    server = config_of(documents).server
    assert pod["terminationGracePeriodSeconds"] >= pause + server.drain_delay + server.drain_timeout + GOODBYE_SECONDS


VALUES: dict[str, tuple[str, ...]] = {
    "default": (),
    "keys that exist": ("keys.existingSecret=secret-of-mine",),
    "keys made": ("keys.create={one,two}", "publicMetrics=false"),
    "one GPU": ("gpu.count=1", "image.tag=cuda", "options.kernels=triton", "runtimeClassName=nvidia"),
    "a volume": ("modelVolume.create=true", "modelVolume.storageClass=fast", "model=a/b", "hubToken.existingSecret=h"),
    "a volume that exists": ("modelVolume.existingClaim=models", "config=/etc/lightcone/nemotron-8b.toml"),
    "hpa": ("autoscaling.enabled=true", "autoscaling.waiting=2"),
    "keda": ("autoscaling.enabled=true", "autoscaling.kind=keda"),
    "watched": ("serviceMonitor.enabled=true", "serviceMonitor.labels.release=prometheus", "tracing.endpoint=http://otel:4318"),
    "pods by name": ("service.pods=true", "service.type=NodePort"),
    "slow to leave": ("drain.preStop=12", "drain.delay=0", "drain.timeout=900"),
    "placed": (
        "nodeSelector.pool=gpu", "tolerations[0].key=gpu", "tolerations[0].operator=Exists", "podLabels.team=a",
        "podAnnotations.note=b", "image.pullSecrets={pull}", "priorityClassName=high", "extraEnv[0].name=HF_HOME",
        "extraEnv[0].value=/models", "rollout.maxSurge=0", "rollout.maxUnavailable=50%",
        "disruptionBudget.enabled=false",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_what_is_rendered_is_valid(helm: str, name: str) -> None:
    """Else `helm install` fails half way, or a pod starts with an option that its server refuses."""
    documents = documents_of(render(helm, VALUES[name]))
    check_by_schema(documents)
    check_parts(documents)
    check_end(documents)
    secret = any(name.startswith("keys.") for name in VALUES[name])
    assert (config_of(documents).server.api_key_file is not None) is secret


def test_the_example_is_the_charts_and_valid() -> None:
    """Two descriptions of one deployment would drift apart, and the untested one would be found out in production."""
    documents = documents_of(EXAMPLE.read_text())
    check_parts(documents)
    check_end(documents)
    check_by_schema(documents)
    program = shutil.which("helm")
    if program is None:
        pytest.skip("helm is not installed: only the rendered example was checked")
    assert example(program) == EXAMPLE.read_text(), "run python -m tools.kubernetes_example"


def test_all_gpus_of_a_pod_are_used(helm: str) -> None:
    """A replica would hold four GPUs, pay for them, and run on the first."""
    documents = documents_of(render(helm, ("gpu.count=4", "gpu.resource=amd.com/gpu")))
    check_by_schema(documents)
    container = container_of(documents)
    assert container["resources"]["limits"]["amd.com/gpu"] == "4"
    variables = {item["name"]: item["value"] for item in container["env"]}
    assert variables["LIGHTCONE_TENSOR_PARALLEL_SIZE"] == "4"
    if "tensor_parallel_size" in option_types():
        assert config_of(documents).engine.tensor_parallel_size == 4
    shared = [v for v in documents["Deployment"]["spec"]["template"]["spec"]["volumes"] if v["name"] == "shm"]
    assert shared[0]["emptyDir"]["medium"] == "Memory", "64 MiB of shared memory are too few for the ranks"


@pytest.mark.parametrize("kind", ["hpa", "keda"])
def test_replicas_follow_the_queue_and_stay_while_they_are_busy(helm: str, kind: str) -> None:
    """By the queue alone, a fleet that is just large enough has none, and would be cut to its minimum."""
    documents = documents_of(
        render(helm, ("autoscaling.enabled=true", f"autoscaling.kind={kind}", "autoscaling.waiting=3"))
    )
    if kind == "hpa":
        spec = documents["HorizontalPodAutoscaler"]["spec"]
        targets = {m["pods"]["metric"]["name"]: m["pods"]["target"]["averageValue"] for m in spec["metrics"]}
        behavior, limits = spec["behavior"], (spec["minReplicas"], spec["maxReplicas"])
    else:
        spec = documents["ScaledObject"]["spec"]
        metadata = [trigger["metadata"] for trigger in spec["triggers"]]
        name = documents["Deployment"]["metadata"]["name"]
        targets = {
            item["query"].removeprefix("sum(").partition("{")[0]: item["threshold"]
            for item in metadata
            if f'pod=~"{name}-.*"' in item["query"] and item["serverAddress"].startswith("http")
        }
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        limits = (spec["minReplicaCount"], spec["maxReplicaCount"])
    assert targets == {"lightcone_requests_waiting": "3", "lightcone_requests_running": "48"}
    assert limits == (2, 8)
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 600


def test_options_reach_the_server_as_they_were_written(helm: str, tmp_path: Path) -> None:
    """Helm reads numbers as floating-point ones: a million would arrive as 1e+06, and no pod would start."""
    options: dict[str, Any] = {
        "max_queued_tokens": 2_000_000, "request_timeout": 7.5, "max_running": 8, "log_text": True, "page": False,
        "cors_origins": ["https://a.example", "https://b.example"], "dtype": "bfloat16", "max_body_bytes": 123_456_789,
    }  # fmt: skip
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump({"options": options, "drain": {"preStop": 2.5, "delay": 0.5, "timeout": 1e6}}))
    documents = documents_of(render(helm, (), file=file))
    check_by_schema(documents)
    check_end(documents)
    config = config_of(documents)
    assert (config.server.drain_delay, config.server.drain_timeout) == (0.5, 1e6)
    for name, value in options.items():
        found = getattr(config.server, name, None) if hasattr(config.server, name) else getattr(config.engine, name)
        assert found == (tuple(value) if isinstance(value, list) else value), name


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("replcias=3",), "replcias"),
        (("replicas=many",), "replicas"),
        (("autoscaling.kind=vpa",), "kind"),
        (("autoscaling.enabled=true", "autoscaling.minReplicas=9"), "maxReplicas is below minReplicas"),
        (("keys.create={one}", "keys.existingSecret=two"), "not both"),
        (("modelVolume.create=true", "modelVolume.existingClaim=two"), "not both"),
        (("options.drain_delay=3",), "options.drain_delay is set by another value"),
        (("keys.create={one}", "publicMetrics=false", "serviceMonitor.enabled=true"), "set publicMetrics"),
        (("tracing.endpoint=otel:4318",), "tracing"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_is_installed(helm: str, values: tuple[str, ...], said: str) -> None:
    """A misspelled value would be ignored, and its owner would believe in it."""
    with pytest.raises(subprocess.CalledProcessError) as error:
        render(helm, values)
    assert said in error.value.stderr


@pytest.mark.parametrize(
    ("release", "name"),
    [("lightcone", "lightcone"), ("blue", "blue-lightcone"), ("my-lightcone", "my-lightcone"), ("x" * 53, None)],
)
def test_releases_stand_beside_each_other(helm: str, release: str, name: str | None) -> None:
    """Two models in one namespace would take each other's pods."""
    documents = documents_of(render(helm, ("modelVolume.create=true", "keys.create={a}"), release))
    names = {kind: document["metadata"]["name"] for kind, document in documents.items()}
    assert all(len(name) <= 63 for name in names.values())
    assert name is None or {names["Deployment"], names["Service"], names["Secret"]} == {name}
    selector = documents["Service"]["spec"]["selector"]
    assert selector["app.kubernetes.io/instance"] == release


def test_helm_itself_finds_no_fault(helm: str) -> None:
    """`helm lint` knows what installing would trip over."""
    done = subprocess.run([helm, "lint", "--strict", CHART], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
