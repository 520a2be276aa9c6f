"""What the chart renders is valid for Kubernetes and for the operators, and changes only on purpose.

Golden renders: `UPDATE_GOLDEN=1 pytest tests/helm/test_render.py` writes them anew; read the diff.
"""

import json
import os
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import helm_python
import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from .conftest import CHART, EVERYTHING, VALUES_FILES, Objects, Render

HERE = Path(__file__).parent
SHARED_CRDS = HERE.parents[2] / "shared" / "crds"
KUBERNETES = [f"1.{minor}" for minor in range(29, 38)]
FILES = ["defaults", *(path.stem for path in VALUES_FILES)]
CASES = ["everything", *FILES]
COMPONENT = "app.kubernetes.io/component"
CRDS = {
    kind: jsonschema.Draft202012Validator(schema)
    for file in ("kuberay.json", "others.json")
    for kind, schema in json.loads((HERE / "crds" / file).read_text(encoding="utf-8")).items()
}


@pytest.fixture(scope="module", autouse=True)
def _schemas_once() -> Iterator[None]:
    """kubernetes-validate reads its files, of megabytes, at every call."""
    with pytest.MonkeyPatch.context() as patch:
        once = lru_cache(32)(kubernetes_validate.utils.schema_contents)
        patch.setattr(kubernetes_validate.utils, "schema_contents", once)
        yield


def pod_templates(found: Any) -> Objects:
    """Every pod template inside an object."""
    if isinstance(found, list):
        return [template for item in found for template in pod_templates(item)]
    if not isinstance(found, dict):
        return []
    here = [found] if isinstance(found.get("spec"), dict) and "containers" in found["spec"] else []
    return [*here, *(template for value in found.values() for template in pod_templates(value))]


def wrapped(template: dict[str, Any]) -> dict[str, Any]:
    """A pod template as an object of its own, which kubernetes-validate knows."""
    parts = {key: template[key] for key in ("metadata", "spec")}
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": parts}


@pytest.mark.parametrize(
    ("version", "case"),
    [*((version, "everything") for version in KUBERNETES), *((v, case) for v in ("1.29", "1.37") for case in FILES)],
)
def test_valid_for_kubernetes(cases: dict[str, Objects], case: str, version: str) -> None:
    for found in cases[case]:
        if found["kind"] not in CRDS:
            assert kubernetes_validate.validate(found, version, strict=True) == version
        for template in pod_templates(found):
            kubernetes_validate.validate(wrapped(template), version, strict=True)


@pytest.mark.parametrize("case", CASES)
def test_valid_for_the_operators(cases: dict[str, Objects], case: str) -> None:
    custom = [found for found in cases[case] if found["kind"] in CRDS]
    assert custom
    for found in custom:
        CRDS[found["kind"]].validate(found)


def test_schemas_find_what_is_wrong(cases: dict[str, Objects]) -> None:
    [service] = [found for found in cases["defaults"] if found["kind"] == "RayService"]
    broken = json.loads(json.dumps(service))
    broken["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParam"] = {}
    assert not CRDS["RayService"].is_valid(broken)
    [template] = pod_templates(service)
    template = json.loads(json.dumps(template))
    template["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrapped(template), "1.37", strict=True)


def test_everything_is_covered(cases: dict[str, Objects], chart: helm_python.Chart) -> None:
    kinds = {found["kind"] for found in cases["everything"]}
    assert kinds >= {"RayService", "RayCluster", "RayJob", "RayCronJob", "PodMonitor", "PrometheusRule", "HTTPRoute"}
    rendered = chart.render(EVERYTHING, name="lab", namespace="ml")
    silent = {path for path, text in rendered.items() if not text.strip()}
    assert silent == {path for path in rendered if path.endswith(("checks.yaml", ".tpl"))}


@pytest.mark.parametrize("case", FILES)
def test_golden(cases: dict[str, Objects], case: str) -> None:
    # Rules and dashboards are copies of files in this repository.
    objects = [found for found in cases[case] if found["metadata"]["labels"][COMPONENT] != "monitoring"]
    text = "---\n".join(yaml.dump(found, Dumper=yaml.CSafeDumper, sort_keys=True, width=1000) for found in objects)
    file = HERE / "golden" / f"{case}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def test_rendering_is_deterministic(render: Render) -> None:
    assert render(EVERYTHING) == render(EVERYTHING)


def test_names_are_unique(cases: dict[str, Objects]) -> None:
    for objects in cases.values():
        names = [(found["kind"], found["metadata"]["name"]) for found in objects]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("case", FILES)
def test_lint_is_clean(tmp_path: Path, case: str) -> None:
    copy = shutil.copytree(CHART, tmp_path / "triptych")
    # The operator's chart is fetched by `helm dependency build`; lint asks only whether it is there.
    operator = copy / "charts" / "kuberay-operator"
    operator.mkdir(parents=True)
    lock = yaml.safe_load((CHART / "Chart.lock").read_text(encoding="utf-8"))
    (operator / "Chart.yaml").write_text(
        yaml.safe_dump({"apiVersion": "v2", **{key: lock["dependencies"][0][key] for key in ("name", "version")}}),
        encoding="utf-8",
    )
    values = {} if case == "defaults" else yaml.safe_load((CHART / "values" / f"{case}.yaml").read_text("utf-8"))
    report = helm_python.lint(copy, values, strict=True, namespace="ml")
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.slow
def test_schemas_are_those_of_the_definitions() -> None:
    if not SHARED_CRDS.is_dir():
        pytest.skip(f"no custom resource definitions in {SHARED_CRDS}")
    from .crds.distill import distill

    committed = json.loads((HERE / "crds" / "kuberay.json").read_text(encoding="utf-8"))
    # The others are inside this one, and all four are of one version.
    assert distill([SHARED_CRDS / "ray.io_raycronjobs.yaml"]) == {"RayCronJob": committed["RayCronJob"]}


def test_serving_workers_are_ready_by_a_probe_that_needs_no_program(render: Render) -> None:
    """Where a worker of a RayService has no readiness probe, KubeRay gives it one that runs wget."""
    objects = render(EVERYTHING)
    [service] = [found for found in objects if found["kind"] == "RayService"]
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert groups
    for group in groups:
        [container] = group["template"]["spec"]["containers"]
        assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "serve"}
        assert {"name": "serve", "containerPort": 8000} in container["ports"]
