"""Values that are misspelt, impossible or at odds with each other are refused, and the message says what and why."""

from typing import Any

import helm_python
import pytest

from .conftest import CHART, EVERYTHING, Render

POSTGRES = {"url": "postgresql+psycopg://triptych@db/triptych"}
RECIPE = {"name": "a", "stages": {}}
TWO_PODS = {"groups": {"serve": {}}, "service": {"groups": ["serve"], "args": {"engine": {"cpus": 1}}}}

CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "sqlite for two pods": (TWO_PODS, "SQLite is for one pod, and this release has up to 2"),
    "sqlite for a job beside the endpoint": ({"jobs": {"a": {"recipe": RECIPE}}}, "SQLite is for one pod"),
    "sqlite without a disk": ({"storage": {"url": "s3://b/t"}}, "there is no disk for SQLite"),
    "password in the url": ({"registry": {"url": "postgresql+psycopg://a:b@db/t"}}, "holds a password"),
    "claim of one pod for two": (TWO_PODS | {"registry": POSTGRES}, "set ReadWriteMany"),
    "cache of one pod for two": (
        TWO_PODS
        | {"registry": POSTGRES, "storage": {"url": "s3://b/t"}}
        | {"modelCache": {"enabled": True, "accessMode": "ReadWriteOnce"}},
        "modelCache.accessMode",
    ),
    "two pods at an upgrade": ({"service": {"upgrade": "NewCluster"}}, "NewCluster runs two pods for a while"),
    "gpu of an idle head": (
        TWO_PODS | {"registry": POSTGRES, "storage": {"url": "s3://b/t"}, "head": {"gpu": {"count": 1}}},
        "beside the worker groups of service.groups the head runs nothing",
    ),
    "offline without a cache": ({"modelCache": {"offline": True}}, "modelCache.offline"),
    "two queues": ({"queue": {"kueue": "a", "volcano": "b"}}, "kueue and volcano exclude each other"),
    "kueue and autoscaling": ({"queue": {"kueue": "a"}, "autoscaling": {"enabled": True}}, "Kueue admits clusters"),
    "kueue and a schedule": (
        {"service": {"enabled": False}, "queue": {"kueue": "q"}}
        | {"jobs": {"a": {"recipe": RECIPE, "schedule": "@daily"}}},
        "jobs.a.schedule",
    ),
    "time zone without a schedule": (
        {"service": {"enabled": False}, "jobs": {"a": {"recipe": RECIPE, "timeZone": "UTC"}}},
        "jobs.a.timeZone acts only with schedule",
    ),
    "ingress without an endpoint": (
        {"service": {"enabled": False}, "ingress": {"enabled": True, "host": "a.b"}},
        "set service.enabled",
    ),
    "engine on the head": (
        {
            "groups": {"serve": {}},
            "service": {"groups": ["serve"]},
            "registry": POSTGRES,
            "storage": {"url": "s3://b/t"},
        },
        "may land on the head",
    ),
    "no such group": ({"service": {"groups": ["serve"]}}, 'there is no group "serve"; groups has: none'),
    "replicas out of bounds": (
        TWO_PODS | {"groups": {"serve": {"replicas": 3, "maxReplicas": 2}}},
        "groups.serve: replicas (3) must lie between",
    ),
    "bounds without autoscaling": (
        TWO_PODS | {"groups": {"serve": {"maxReplicas": 2}}},
        "only with autoscaling.enabled",
    ),
    "recipe that is not yaml": (
        {"service": {"enabled": False}, "jobs": {"a": {"recipe": "a: [b"}}},
        "jobs.a.recipe is not YAML",
    ),
    "recipe that is none": (
        {"service": {"enabled": False}, "jobs": {"a": {"recipe": "model: {base: x}"}}},
        "jobs.a.recipe is no recipe",
    ),
    "name too long for a schedule": (
        {"service": {"enabled": False}, "fullnameOverride": "f" * 30}
        | {"jobs": {"nightly": {"recipe": RECIPE, "schedule": "@daily"}}},
        "has 38 characters, KubeRay takes 36",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions(render: Render, case: str) -> None:
    values, says = CONTRADICTIONS[case]
    with pytest.raises(helm_python.HelmError) as refused:
        render(values)
    assert says in str(refused.value)


def test_long_release_names_are_refused(render: Render) -> None:
    render({}, name="r" * 38)
    with pytest.raises(helm_python.HelmError, match="48 characters, KubeRay takes 47"):
        render({}, name="r" * 39)


IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "tag latest": {"image": {"tag": "latest"}},
    "digest": {"image": {"digest": "sha256:abc"}},
    "sqlite url": {"registry": {"url": "sqlite:////data/other.db"}},
    "http storage": {"storage": {"url": "http://bucket/t"}},
    "memory": {"head": {"memory": "12 GB"}},
    "cpu": {"head": {"cpu": "two"}},
    "mig": {"head": {"gpu": {"mig": "big"}}},
    "upgrade": {"service": {"upgrade": "Sometimes"}},
    "replicas of the head": {"head": {"replicas": 2}},
    "name with capitals": {"fullnameOverride": "Triptych"},
    "name too long": {"fullnameOverride": "f" * 48},
    "job without a recipe": {"jobs": {"a": {}}},
    "job with a name for a shell": {"jobs": {"a;b": {"recipe": RECIPE}}},
    "stage with a name for a shell": {"jobs": {"a": {"recipe": RECIPE, "stage": "sft; rm -rf /"}}},
    "schedule": {"jobs": {"a": {"recipe": RECIPE, "schedule": "every night"}}},
    "redis without a port": {"redis": {"address": "redis"}},
    "ingress without a host": {"ingress": {"enabled": True}},
    "route without a gateway": {"httpRoute": {"enabled": True}},
    "number for a label": {"commonLabels": {"a": 1}},
    "engine": {"service": {"args": {"engine": {"max_lora_rank": 7}}}},
    "what the chart gives itself": {"service": {"args": {"registry": "sqlite:///x"}}},
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_values(render: Render, case: str) -> None:
    with pytest.raises(helm_python.HelmValuesError):
        render(IMPOSSIBLE[case])


FREE = {"commonLabels", "commonAnnotations", "annotations", "podLabels", "podAnnotations", "nodeSelector", "labels"}
FREE |= {"groups", "jobs", "kuberay-operator", "matchLabels", "namespaceSelector", "podSelector", "podAntiAffinity"}
"""Maps whose keys are the user's."""


def maps(found: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Paths of all maps inside the values whose keys are the chart's."""
    if isinstance(found, list):
        return [path_ for index, item in enumerate(found) for path_ in maps(item, (*path, index))]
    if not isinstance(found, dict):
        return []
    inside = [path_ for key, value in found.items() if key != "recipe" for path_ in maps(value, (*path, key))]
    free = bool(path) and path[-1] in FREE and path[:1] != ("service",)
    return inside if free else [path, *inside]


CLOSED = sorted({*maps(helm_python.Chart.load(CHART).values), *maps(EVERYTHING)}, key=str)


@pytest.mark.parametrize("path", CLOSED, ids=lambda path: ".".join(map(str, path)) or "top")
def test_typos_are_refused_everywhere(chart: helm_python.Chart, path: tuple[str | int, ...]) -> None:
    chart.validate_schema(EVERYTHING)
    values = chart.merge_values(EVERYTHING)
    place: Any = values
    for key in path:
        place = place[key]
    place["tpyo"] = "x"
    with pytest.raises(helm_python.HelmValuesError, match="tpyo"):
        chart.validate_schema(values)
