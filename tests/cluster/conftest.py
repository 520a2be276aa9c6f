"""A real cluster that the tests of this folder share, and a laptop with a recipe."""

import json
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

import triptych
from tests.support.three_nodes import NEWER, Cluster, Laptop, clean, free_port, until


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """Three nodes; the head has no CPU for others' work. Sockets want a short path."""
    root = Path(tempfile.mkdtemp(prefix="tt-", dir="/tmp"))
    made = Cluster(root, secrets.token_hex(32), free_port())
    (root / "token").touch(0o600)
    (root / "token").write_text(made.token)
    gcs = free_port()
    memory = "--object-store-memory=100000000"
    try:
        made.start("head", "--head", f"--port={gcs}", "--num-cpus=0", f"--dashboard-port={made.dashboard}",
                   f"--ray-client-server-port={free_port()}", memory)  # fmt: skip
        until("the head answers", partial(made.has, 1))
        for number, name in enumerate(("one", "two"), start=2):  # Ray gives each 30 s to start
            made.start(name, f"--address=127.0.0.1:{gcs}", "--num-cpus=2", memory)
            until(f"{number} nodes", partial(made.has, number))
        yield made
    finally:
        for node in list(made.nodes):
            made.kill(node)
        shutil.rmtree(root)


@pytest.fixture
def laptop(cluster: Cluster, tiny_model_dir: Path, tmp_path: Path) -> Laptop:
    """SFT of 150 short steps; the rows are named by a relative path, the base by an absolute one."""
    folder = tmp_path / "laptop"
    (folder / "data").mkdir(parents=True)
    rows = [{"prompt": f"Film {i}?", "response": f"The film is the {i}th."} for i in range(48)]
    (folder / "data" / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "tiny",
        "model": {"base": str(tiny_model_dir), "dtype": "float32"},
        "stages": {
            "sft": {
                "kind": "sft",
                "method": {"name": "lora", "r": 4, "alpha": 8},
                "data": {"train": {"path": "data/sft.jsonl"}},
                "train": {"steps": 150, "checkpoint_every": 10, "batch": {"rows": 8, "micro_tokens": 256}},
            }
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return Laptop(folder, cluster)


@pytest.fixture(scope="package")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with this triptych, built and installed as NEWER."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("packages")
    root = Path(__file__).parents[2]
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    shutil.copytree(root / "platform" / "triptych", source / "platform" / "triptych")
    init = source / "platform" / "triptych" / "__init__.py"
    init.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{NEWER}"', init.read_text()))
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*words, "--target", str(target), str(source)], check=True, env=clean())
    return target


@pytest.fixture(scope="package")
def trained(cluster: Cluster, packaged: Path, _tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Laptop:
    """A laptop that had SFT, a reward model and PPO run on the cluster, a step or two each, into `shared`.

    Its triptych is another version than the cluster's, and travels.
    """
    folder = tmp_path_factory.mktemp("trained")
    method = {"name": "lora", "r": 4, "alpha": 8}
    train = {"steps": 2, "batch": {"rows": 4, "micro_tokens": 256}}
    rows = {
        "sft": [{"prompt": f"Film {i}?", "response": f"The film is the {i}th."} for i in range(8)],
        "reward": [{"prompt": f"Film {i}?", "chosen": "It is warm.", "rejected": "It is dull."} for i in range(8)],
        "ppo": [{"prompt": f"What about film {i}?"} for i in range(4)],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    stages: dict[str, dict[str, object]] = {
        "sft": {"kind": "sft", "method": method, "train": train},
        "reward": {"kind": "reward", "method": method, "train": train},
        "ppo": {
            "kind": "ppo",
            "policy": "sft",
            "reward": "reward",
            "steps": 1,
            "prompts_per_step": 2,
            "samples_per_prompt": 2,
            "micro_tokens": 512,
            "rollout": {"engines": 1, "kv_cache_gb": 0.1, "sampling": {"max_new_tokens": 8}},
        },
    }
    recipe = {
        "name": "small",
        "model": {"base": str(_tiny_model), "dtype": "float32"},
        "storage": {"runs": str(folder / "shared")},
        "stages": {name: stage | {"data": {"train": {"path": f"{name}.jsonl"}}} for name, stage in stages.items()},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    laptop = Laptop(folder, cluster, packages=packaged)
    code, out, err = laptop.call("run", "recipe.yaml", "--json")
    assert code == 0, err
    assert f"has triptych {triptych.__version__}, this machine {NEWER}, which travels" in err
    assert json.loads(out)["ppo"]["registered"] == "small-ppo@1"
    return laptop
