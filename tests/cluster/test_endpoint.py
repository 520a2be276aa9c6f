"""An endpoint on a cluster of three nodes, put there and asked from outside as a laptop does."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from three_nodes import Laptop, assert_no_token, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


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


def test_what_cannot_be_served_is_refused_and_leaves_nothing(trained: Laptop, config: Path) -> None:
    for override, said in (
        ("registry=runs/registry.db", "registry: 'runs/registry.db' is a place of this machine"),
        (f"registry=sqlite:///{trained.folder}/none/registry.db", "there is no registry at sqlite:///"),
        ("adapters=[small-reward]", "adapters: small-reward cannot be served"),
    ):
        code, out, err = trained.call("serve", config.name, "--set", override)
        assert (code, out) == (2, ""), err
        assert f"error: {said}" in err
    assert not (trained.folder / "none").exists()
    assert "has no endpoint" in trained.call("serve", "--stop")[2]


def test_the_endpoint_stays_and_is_found_again(trained: Laptop, config: Path, served: str) -> None:
    code, out, _ = trained.call("serve", config.name)
    assert (code, out) == (0, f"serving at {served}\n")
    code, _, err = trained.call("serve", config.name, "--set", "require_key=false")
    assert code == 2
    assert "has an endpoint with other arguments (require_key): --replace" in err
    code, _, err = trained.call("serve", config.name, "--replace", "--set", "require_key=false")
    assert code == 0, err
    answer = httpx.get(f"{served}/models", timeout=60).json()
    assert {model["id"] for model in answer["data"]} >= {"small-sft", "small-ppo@1"}
    body = {"model": "small-ppo", "messages": [{"role": "user", "content": "Film 1?"}], "max_tokens": 4}
    answer = httpx.post(f"{served}/chat/completions", json=body, timeout=120).json()
    assert answer["model"] == "small-ppo@1"
    assert_no_token(trained)
