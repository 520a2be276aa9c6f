"""Fixtures that several folders of tests share."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.ranks import Ranks

pytest_plugins = ["tests.support.no_skips", "tests.support.schedule", "tests.support.times"]

# Nothing in the tests may reach a model hub, and a test process has one core or two.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two processes of tests with two threads each wait for each other's cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray Train looks every two seconds whether its workers have ended; so short are many of them here.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
# It also watches for nodes that are taken away, in a process of its own; nothing here is.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

THREE_STAGES = """\
name: reviews
model: {base: smollm2-135m-instruct}
stages:
  sft:
    kind: sft
    data: {train: {path: sft.jsonl}}
    train: {epochs: 1}
  reward:
    kind: reward
    data: {train: {path: pairs.jsonl}}
    train: {epochs: 1}
  ppo:
    kind: rl
    policy: sft
    rewards: [{name: model, stage: reward}]
    data: {train: {path: prompts.jsonl}}
    train: {steps: 8}
"""


@pytest.fixture
def three_stages(tmp_path: Path) -> Path:
    """A recipe file: SFT, a reward model and PPO from both, all else left to the defaults."""
    path = tmp_path / "recipe.yaml"
    path.write_text(THREE_STAGES)
    return path


@pytest.fixture(scope="session")
def _tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama-shaped model with random weights and a byte-level tokenizer, as a Hugging Face folder."""
    from tests.support.tiny_model import make_tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_model(folder)
    return folder


@pytest.fixture
def tiny_model_dir(_tiny_model: Path) -> Path:
    """Folder of the tiny model; shared by all tests, so read it only (`tiny_model_copy` is yours to change)."""
    return _tiny_model


@pytest.fixture
def tiny_model_copy(_tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that the test may change."""
    return Path(shutil.copytree(_tiny_model, tmp_path / "tiny-copy"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Data sets beside the checkout (`../shared/data`); the test is skipped where there are none."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}")
    return folder


@pytest.fixture(scope="session")
def ranks() -> Iterator["Ranks"]:
    """Two processes in one group, which all tests share."""
    from tests.support.ranks import Ranks

    made = Ranks()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of two CPUs in this process, shut down after the file's tests."""
    import ray

    ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=False)
    yield
    ray.shutdown()
