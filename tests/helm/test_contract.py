"""The chart and Triptych agree on arguments, recipes, versions and names, and the chart's files with each other."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

import triptych
from triptych.recipe import Recipe, load_recipe
from triptych.recipe.serve import ServeConfig
from triptych.registry import Registry

from .conftest import CHART, EVERYTHING, VALUES_FILES, Objects, Render
from .test_render import FILES

ROOT = CHART.parents[1]


def serve_config(objects: Objects) -> dict[str, Any]:
    [service] = [found for found in objects if found["kind"] == "RayService"]
    config: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])
    return config


@pytest.mark.parametrize("case", [case for case in FILES if case != "kueue"])
def test_endpoint_takes_the_arguments(cases: dict[str, Objects], case: str) -> None:
    [application] = serve_config(cases[case])["applications"]
    module, _, function = application["import_path"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))
    config = ServeConfig.model_validate(application["args"])
    assert config.require_key


@pytest.mark.slow
def test_ray_takes_the_serve_config(cases: dict[str, Objects]) -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(serve_config(cases["ha"]))
    assert schema.http_options.host == "0.0.0.0"
    assert schema.http_options.port == 8000


def job_recipe(objects: Objects, folder: Path) -> Recipe:
    """The recipe that the pod of the only job runs: the file that it mounts, and its command's options."""
    [found] = [found for found in objects if found["kind"] == "ConfigMap"]
    [job] = [found for found in objects if found["kind"] == "RayJob"]
    path = folder / "recipe.yaml"
    path.write_text(found["data"]["recipe.yaml"], encoding="utf-8")
    words = shlex.split(job["spec"]["entrypoint"])
    return load_recipe(path, [words[at + 1] for at, word in enumerate(words) if word == "--set"])


def test_recipes_arrive_with_the_storage(cases: dict[str, Objects], render: Render, tmp_path: Path) -> None:
    recipe = job_recipe(cases["kueue"], tmp_path)
    assert recipe.storage.runs == "s3://models/triptych/runs"
    assert recipe.storage.registry == "postgresql+psycopg://triptych@postgres.database.svc:5432/triptych"

    example = (ROOT / "examples" / "reviews" / "recipe.yaml").read_text(encoding="utf-8")
    own = example + "storage: {runs: /data/mine}\n"
    written = job_recipe(render({"service": {"enabled": False}, "jobs": {"reviews": {"recipe": own}}}), tmp_path)
    (tmp_path / "example.yaml").write_text(example, encoding="utf-8")
    assert written.stages == load_recipe(tmp_path / "example.yaml").stages
    assert written.storage.runs == "/data/mine"
    assert written.storage.artifacts == "/data/artifacts"


@pytest.mark.parametrize("labels", ["[no, yes]", "[on, off]", "[y, n]", "[010, 1_000]", "['12:30:45', 2020-01-01]"])
def test_a_recipe_reaches_the_pod_as_it_was_written(render: Render, labels: str) -> None:
    """Helm reads YAML 1.1, where these are truth values, numbers, times and dates."""
    text = f"# told apart\nname: spam\nstages:\n  judge: {{kind: classification, labels: {labels}}}\n\n\n"
    objects = render({"service": {"enabled": False}, "jobs": {"spam": {"recipe": text}}})
    [found] = [found for found in objects if found["kind"] == "ConfigMap"]
    assert found["data"]["recipe.yaml"] == text


def test_job_runs_the_recipe_that_it_mounts(render: Render) -> None:
    def job(recipe: dict[str, Any], **more: Any) -> dict[str, Any]:
        objects = render({"service": {"enabled": False}, "jobs": {"a": {"recipe": recipe, **more}}})
        [found] = [found for found in objects if found["kind"] == "RayJob"]
        return found

    first = job({"name": "a", "stages": {"sft": {}}}, stage="sft")
    command = shlex.split(first["spec"]["entrypoint"])
    assert command[:6] == ["triptych", "run", "/etc/triptych/recipe.yaml", "--json", "--stage", "sft"]
    head = first["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert {"name": "recipe", "configMap": {"name": first["metadata"]["name"]}} in head["volumes"]
    again = job({"name": "a", "stages": {"sft": {}}}, stage="sft", keepSeconds=60)
    other = job({"name": "a", "stages": {"sft": {"x": 1}}}, stage="sft")
    assert first["metadata"]["name"] == again["metadata"]["name"]
    assert first["metadata"]["name"] != other["metadata"]["name"]


@pytest.mark.slow
def test_registry_is_there_before_the_endpoint(cases: dict[str, Objects], tmp_path: Path) -> None:
    [service] = [found for found in cases["defaults"] if found["kind"] == "RayService"]
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    [init] = head["initContainers"]
    python, *arguments = init["command"]
    url = f"sqlite:///{tmp_path}/registry.db"
    assert python == "python"
    subprocess.run([sys.executable, *arguments], env=os.environ | {"TRIPTYCH_REGISTRY": url}, check=True)
    assert Registry(url, create=False).keys() == []


def test_versions_are_one(cases: dict[str, Objects], chart: helm_python.Chart) -> None:
    metadata = chart.metadata
    assert metadata["appVersion"] == triptych.__version__
    lock = (ROOT / "requirements" / "cpu.lock").read_text(encoding="utf-8")
    [ray] = re.findall(r"^ray==(.+)$", lock, flags=re.MULTILINE)
    [service] = [found for found in cases["defaults"] if found["kind"] == "RayService"]
    assert service["spec"]["rayClusterConfig"]["rayVersion"] == ray


def test_lock_belongs_to_the_dependencies(tmp_path: Path) -> None:
    copy = shutil.copytree(CHART, tmp_path / "triptych")
    with pytest.raises(helm_python.HelmError) as fails:  # there is no repository to fetch from
        helm_python.dependency_build(copy)
    assert "out of sync" not in str(fails.value)


@pytest.mark.slow
def test_made_files_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "deploy" / "render.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_value_is_described() -> None:
    table = (CHART / "README.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

    def undescribed(found: Any, path: str) -> list[str]:
        if path in described:
            return []
        if isinstance(found, dict) and found:
            return [name for key, value in found.items() for name in undescribed(value, f"{path}.{key}".lstrip("."))]
        return [path]

    assert undescribed(values, "") == []


def test_readme_names_every_values_file() -> None:
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(values/([\w-]+\.yaml)\)", readme)) == {path.name for path in VALUES_FILES}


HELM = [
    line
    for readme in (ROOT / "README.md", CHART / "README.md")
    for line in readme.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    if line.startswith(("helm install", "helm upgrade"))
]


@pytest.mark.parametrize("line", HELM)
def test_readme_commands_render(chart: helm_python.Chart, line: str) -> None:
    _, _, name, path, *options = shlex.split(line)
    assert (ROOT / path).samefile(CHART)
    values: dict[str, Any] = {}
    while options:
        option = options.pop(0)
        if option == "--values":
            values |= yaml.safe_load((ROOT / options.pop(0)).read_text(encoding="utf-8"))
        elif option == "--set":
            values |= helm_python.parse_set_string(options.pop(0))
        elif option == "--set-file":
            place, _, file = options.pop(0).partition("=")
            _, job, field = place.split(".")
            values["jobs"] = {job: values["jobs"][job] | {field: (ROOT / file).read_text(encoding="utf-8")}}
        elif option == "--namespace":
            assert options.pop(0) == "triptych"
        else:
            assert option == "--create-namespace"
    assert chart.render(values, name=name, namespace="triptych")


def test_notes_name_what_is_rendered(chart: helm_python.Chart, render: Render) -> None:
    names = {found["metadata"]["name"] for found in render(EVERYTHING)}
    notes = chart.render(EVERYTHING, name="lab", namespace="ml")["triptych/templates/NOTES.txt"]
    assert "https://llm.example.com/v1" in notes
    for kind in ("rayservice", "rayjob", "raycronjob"):
        assert set(re.findall(rf"get {kind} ([\w-]+)", notes)) <= names
    assert "get secret ray-token" in notes


@pytest.mark.parametrize("key", ["", "right", "wrong"])
def test_helm_test_asks_the_endpoint(cases: dict[str, Objects], key: str) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/healthz":
                self.answer(200, {"status": "ok"})
            elif self.headers.get("Authorization") != "Bearer right":
                self.answer(401, {})
            else:
                self.answer(200, {"data": [{"id": "base", "parent": None}, {"id": "reviews", "parent": "base"}]})

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            choice = {"message": {"content": "Hello."}}
            self.answer(200, {"choices": [choice], "usage": {"completion_tokens": 2}})

        def answer(self, status: int, body: dict[str, Any]) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None: ...

    [pod] = [found for found in cases["everything"] if found["kind"] == "Pod"]
    [container] = pod["spec"]["containers"]
    ast.parse(container["args"][0])
    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        env = {"ENDPOINT": f"http://127.0.0.1:{server.server_port}", "ADAPTER": "reviews"} | (
            {"API_KEY": key} if key else {}
        )
        done = subprocess.run(
            [sys.executable, "-c", container["args"][0]], env=env, capture_output=True, text=True, check=False
        )
    finally:
        server.shutdown()
        server.server_close()
    assert (done.returncode == 0) is (key != "wrong"), done.stderr
    if key == "right":
        assert asked[0]["model"] == "reviews"
        assert "2 models; reviews says" in done.stdout
    else:
        assert asked == []
