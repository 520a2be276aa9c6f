"""An endpoint on a cluster of three nodes, put there and asked from outside as a laptop does."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support.three_nodes import Laptop, assert_absent, assert_no_token, free_port

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def config(trained: Laptop, _tiny_model: Path) -> Path:
    """The config of an endpoint on what the cluster's run registered."""
    content = {
        "model": {"base": str(_tiny_model), "dtype": "float32"},
        "registry": f"sqlite:///{trained.folder}/shared/registry.db",
        "engine": {"max_loras": 2, "max_lora_rank": 8, "max_model_len": 256, "kv_cache_gb": 0.1, "threads": 1},
        "host": "127.0.0.1",
        "port": free_port(),
    }
    path = trained.folder / "serve.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def served(trained: Laptop, config: Path) -> Iterator[str]:
    """URL of the endpoint."""
    code, out, err = trained.call("serve", config.name)
    assert code == 0, err
    yield out.split()[-1]
    assert trained.call("serve", "--stop")[:2] == (0, "stopped\n")
    code, _, err = trained.call("serve", "--stop")
    assert code == 2
    assert "has no endpoint" in err


@pytest.mark.exhaustive
def test_what_cannot_be_served_is_refused_and_leaves_nothing(trained: Laptop, config: Path) -> None:
    for override, said in (
        ("registry=runs/registry.db", "registry: 'runs/registry.db' is a place of this machine"),
        ("adapters=[small-reward]", "adapters: small-reward cannot be served"),
    ):
        code, out, err = trained.call("serve", config.name, "--set", override)
        assert (code, out) == (2, ""), err
        assert f"error: {said}" in err
    assert "has no endpoint" in trained.call("serve", "--stop")[2]


@pytest.mark.exhaustive
def test_the_endpoint_stays_and_is_found_again(trained: Laptop, config: Path, served: str) -> None:
    code, out, _ = trained.call("serve", config.name)
    assert (code, out) == (0, f"serving at {served}\n")
    code, _, err = trained.call("serve", config.name, "--set", "adapters=[small-ppo]")
    assert code == 2
    assert "has an endpoint with other arguments (adapters): --replace" in err


def test_its_registry_is_reached_from_outside_by_an_admin_key(trained: Laptop, served: str) -> None:
    """The key's own way to the cluster: only its sha256 is in what the job was sent, and nothing in what it printed."""
    code, key, err = trained.call("keys", "create", "--label", "laptop", "--admin")
    assert code == 0, err
    by_key = {"TRIPTYCH_KEY": key.strip(), "TRIPTYCH_REGISTRY": served}
    assert trained.call("adapters", "alias", "small-ppo@1", "live", environment=by_key)[1] == (
        "small-ppo@live -> small-ppo@1\n"
    )
    listed = {one["name"]: one for one in json.loads(trained.call("adapters", "list", "--json", environment=by_key)[1])}
    assert listed["small-ppo"]["aliases"] == {"live": 1}

    headers = {"Authorization": f"Bearer {key.strip()}"}
    body = {"model": "small-ppo@live", "messages": [{"role": "user", "content": "Film 1?"}], "max_tokens": 4}
    answer = httpx.post(f"{served}/chat/completions", json=body, headers=headers, timeout=120).json()
    assert answer["model"] == "small-ppo@1"

    [made] = json.loads(trained.call("keys", "list", "--json")[1])
    assert (made["label"], made["admin"]) == ("laptop", True)
    assert_absent(trained, key.strip())
    assert trained.call("keys", "revoke", made["id"])[0] == 0
    assert httpx.get(f"{served}/models", headers=headers, timeout=60).status_code == 401
    assert_no_token(trained)


@pytest.mark.exhaustive
def test_an_endpoint_is_replaced(trained: Laptop, config: Path, served: str) -> None:
    change = ("--replace", "--set", "require_key=false")
    code, out, err = trained.call("serve", config.name, *change)
    assert (code, out) == (0, f"serving at {served}\n"), err
    models = {model["id"] for model in httpx.get(f"{served}/models", timeout=60).json()["data"]}
    assert models >= {"small-sft", "small-ppo@1"}
