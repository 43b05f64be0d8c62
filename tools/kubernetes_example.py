"""`python -m tools.kubernetes_example`: configs/kubernetes.yaml, rendered from the chart. Needs the program `helm`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
CHART = CONFIGS / "helm" / "lightcone"
EXAMPLE = CONFIGS / "kubernetes.yaml"
VALUES = ("keys.existingSecret=lightcone",)
HEADER = """\
# Two replicas with the built-in model, for clusters without Helm:
#
#   kubectl create secret generic lightcone --from-file=api-keys=FILE     # one key a line
#   kubectl apply -f configs/kubernetes.yaml
#
# Rendered from configs/helm/lightcone by `python -m tools.kubernetes_example`; change it there. With Helm:
#
#   helm install lightcone configs/helm/lightcone --set keys.existingSecret=lightcone

"""


def render(helm: str, values: Sequence[str] = VALUES, release: str = "lightcone", file: Path | None = None) -> str:
    """What the chart makes of values (`name=value`) and a file of them. Raises CalledProcessError, with its words."""
    command = [helm, "template", release, str(CHART), *(word for value in values for word in ("--set", value))]
    command += [] if file is None else ["--values", str(file)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def example(helm: str) -> str:
    """The text of configs/kubernetes.yaml."""
    return HEADER + re.sub(r"^# Source: .*\n", "", render(helm), flags=re.MULTILINE).removeprefix("---\n")


def main() -> int:
    helm = shutil.which("helm")
    if helm is None:
        print("there is no program `helm` here", file=sys.stderr)
        return 1
    EXAMPLE.write_text(example(helm), encoding="utf-8")
    print(f"wrote {EXAMPLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
