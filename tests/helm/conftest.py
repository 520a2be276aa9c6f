"""The chart rendered by Helm's own engine, without a cluster."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

CHART = Path(__file__).parents[2] / "helm" / "triptych"
VALUES_FILES = sorted((CHART / "values").glob("*.yaml"))

Objects = list[dict[str, Any]]
Render = Callable[..., Objects]

EVERYTHING: dict[str, Any] = {
    "commonLabels": {"team": "nlp"},
    "commonAnnotations": {"owner": "nlp@example.com"},
    "image": {"pullSecrets": ["registry"]},
    "auth": {"existingSecret": "ray-token"},
    "registry": {"url": "postgresql+psycopg://triptych@db:6432/triptych", "passwordSecret": {"name": "db"}},
    "storage": {"accessMode": "ReadWriteMany", "storageClass": "nfs"},
    "modelCache": {"enabled": True},
    "envSecrets": ["bucket", "huggingface"],
    "redis": {"address": "redis:6379", "passwordSecret": {"name": "redis"}},
    "head": {"nodeSelector": {"pool": "cpu"}, "env": [{"name": "A", "value": "b"}]},
    "groups": {
        "serve": {
            "replicas": 3,
            "gpu": {"count": 1, "type": "NVIDIA-L40S"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
            "spreadOver": "topology.kubernetes.io/zone",
            "priorityClassName": "high",
            "runtimeClassName": "nvidia",
            "schedulerName": "volcano",
            "podLabels": {"a": "b"},
            "podAnnotations": {"c": "d"},
        },
        "train": {"replicas": 2, "gpu": {"count": 2, "mig": "3g.40gb"}, "shm": "8Gi"},
    },
    "service": {"groups": ["serve"], "args": {"replicas": 3, "engine": {"gpus": 1}}},
    "cluster": {"enabled": True, "groups": ["train"]},
    "jobs": {
        "once": {"recipe": {"name": "a", "stages": {}}, "stage": "sft", "groups": ["train"], "suspend": True},
        "nightly": {"recipe": "name: b\nstages: {}\n", "schedule": "0 3 * * *", "timeZone": "Europe/Paris"},
    },
    "queue": {"volcano": "training", "priorityClassName": "low"},
    "ingress": {"enabled": True, "className": "nginx", "host": "llm.example.com", "tlsSecret": "tls"},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["llm.example.com"]},
    "networkPolicy": {"egress": [{"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 9000}]}]},
    "monitoring": {"podMonitor": True, "rules": True, "dashboards": True, "labels": {"release": "prometheus"}},
    "test": {"keySecret": "test-key", "adapter": "reviews"},
}
"""Values that make the chart render all its objects at once."""


@pytest.fixture(scope="session")
def chart() -> helm_python.Chart:
    """The chart, loaded."""
    return helm_python.Chart.load(CHART)


@pytest.fixture(scope="session")
def render(chart: helm_python.Chart) -> Render:
    """`render(values) -> objects`, in the order of Helm's output; raises what Helm says."""

    def render(values: dict[str, Any] | None = None, name: str = "lab", namespace: str = "ml") -> Objects:
        rendered = chart.render(values or {}, name=name, namespace=namespace)
        texts = [text for path, text in sorted(rendered.items()) if path.endswith(".yaml")]
        return [found for text in texts for found in yaml.load_all(text, yaml.CSafeLoader) if found]

    return render


@pytest.fixture(scope="session")
def cases(render: Render) -> dict[str, Objects]:
    """What the defaults, each values file, and everything at once render to."""
    files = {path.stem: render(yaml.safe_load(path.read_text(encoding="utf-8"))) for path in VALUES_FILES}
    return {"defaults": render(), "everything": render(EVERYTHING), **files}
