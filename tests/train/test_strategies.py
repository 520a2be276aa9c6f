"""Every strategy gives the gradients of one process."""

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


def torchrun(script: str, *arguments: str, ranks: int = 2) -> None:
    """Without Ray: what is here must run on any machine with torch."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    subprocess.run([*command, str(Path(__file__).with_name(script)), *arguments], check=True, timeout=300)
