"""New weights of experts reach vLLM's CPU kernel, or are refused."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from triptych.engines.vllm import MergeExtension
from triptych.errors import RunError

NAMES = ("layers.0.attn.weight", "layers.0.experts.weight")


@pytest.fixture
def extension(tmp_path: Any) -> Any:
    """A worker whose model has experts with a kernel, which is set up anew where there is none when they load."""
    save_file({name: torch.zeros(2, 2) for name in NAMES}, tmp_path / "model.safetensors")
    model: Any = nn.Linear(2, 2)
    made: Any = MergeExtension()
    method = SimpleNamespace(moe_kernel="first")
    model.quant_method = method

    def load(weights_iterator: Any) -> None:
        dict(weights_iterator)
        if made.loads_experts and method.moe_kernel is None:
            method.moe_kernel = "set up anew"

    made.loads_experts = True
    made.model_runner = SimpleNamespace(
        model_config=SimpleNamespace(dtype=torch.float32), device="cpu", get_model=lambda: model, reload_weights=load
    )
    made.folder, made.method = str(tmp_path), method
    return made


def test_experts_are_set_up_at_every_load(extension: Any) -> None:
    extension.triptych_replace(extension.folder, [save({NAMES[1]: torch.ones(2, 2)})])
    assert extension.method.moe_kernel == "set up anew"


def test_experts_that_are_not_loaded_again_stay(extension: Any) -> None:
    extension.loads_experts = False
    extension.triptych_replace(extension.folder, [save({NAMES[0]: torch.ones(2, 2)})])
    assert extension.method.moe_kernel == "first"


def test_changed_experts_that_are_not_loaded_again_are_refused(extension: Any) -> None:
    extension.loads_experts = False
    with pytest.raises(RunError, match=r"no new weights for the experts .* changes layers\.0\.experts\.weight"):
        extension.triptych_replace(extension.folder, [save({NAMES[1]: torch.ones(2, 2)})])
