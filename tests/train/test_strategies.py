"""Every strategy gives the gradients of one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gradient_cases import CASES, TOLERANCE, assert_equal, gradients, make_learner, make_model
from safetensors.torch import load_file


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero1", "zero2", "zero3"])
def test_gradients_are_those_of_one_process(tiny_model_dir: Path, tmp_path: Path, strategy: str) -> None:
    torchrun("rank_strategies.py", str(tiny_model_dir), str(tmp_path), strategy)
    dtype = torch.float32 if strategy.startswith("zero") else torch.float64
    for method in ("lora", "full"):
        for case, (objective, make) in CASES.items():
            model = make_model(tiny_model_dir, dtype, roles=(objective.role,), method=method)
            whole = gradients(make_learner(model), objective, [make(list(range(8)), dtype)])
            assert_equal(load_file(tmp_path / f"{strategy}-{method}-{case}.safetensors"), whole, TOLERANCE[dtype])
    if strategy == "fsdp":
        objective, make = CASES["language"]
        model = make_model(tiny_model_dir, torch.bfloat16, roles=("policy",), method="full")
        whole = gradients(make_learner(model), objective, [make(list(range(8)), torch.bfloat16)])
        assert_equal(load_file(tmp_path / "fsdp-full-bfloat16.safetensors"), whole, 0.05)


def torchrun(script: str, *arguments: str, ranks: int = 2) -> None:
    """Without Ray: what is here must run on any machine with torch."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    subprocess.run([*command, str(Path(__file__).with_name(script)), *arguments], check=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero1", "zero2", "zero3"])
def test_losses_are_those_of_one_process_and_training_goes_on(
    tiny_model_dir: Path, single_traces: Path, tmp_path: Path, strategy: str
) -> None:
    """Two workers against one; then from one worker's checkpoint, whatever the strategy that wrote it."""
    torchrun("rank_traces.py", str(tiny_model_dir), str(tmp_path), strategy)
    for method in ("lora", "full"):
        single = json.loads((single_traces / f"single-{method}.json").read_text())
        found = json.loads((tmp_path / f"{strategy}-{method}.json").read_text())
        assert found["losses"] == pytest.approx(single["losses"], abs=1e-4)
        assert found["losses"][-1] < 0.8 * found["losses"][0]
        assert found["resumed"] == pytest.approx(found["losses"][10:], abs=1e-6)
    torchrun("rank_traces.py", str(tiny_model_dir), str(tmp_path / "other"), strategy, str(single_traces / "single"))
    for method in ("lora", "full"):
        single = json.loads((single_traces / f"single-{method}.json").read_text())
        found = json.loads((tmp_path / "other" / f"{strategy}-{method}.json").read_text())
        assert found["resumed"] == pytest.approx(single["losses"][10:], abs=1e-4)


@pytest.mark.slow
def test_one_worker_goes_on_from_two_workers_checkpoint(tiny_model_dir: Path, tmp_path: Path) -> None:
    torchrun("rank_traces.py", str(tiny_model_dir), str(tmp_path), "fsdp")
    alone(tiny_model_dir, tmp_path / "other", str(tmp_path / "fsdp"))
    for method in ("lora", "full"):
        expected = json.loads((tmp_path / f"fsdp-{method}.json").read_text())
        found = json.loads((tmp_path / "other" / f"single-{method}.json").read_text())
        assert found["resumed"] == pytest.approx(expected["losses"][10:], abs=1e-4)


@pytest.fixture(scope="module")
def single_traces(_tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    alone(_tiny_model, folder)
    return folder


def alone(model: Path, out: Path, *arguments: str) -> None:
    command = [sys.executable, str(Path(__file__).with_name("rank_traces.py")), str(model), str(out), "single"]
    subprocess.run([*command, *arguments], check=True, timeout=120)
