"""Whole models that were trained lie as the files of their base do, whatever transformers renames and stacks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support.mixtures import each_mixture, saved
from triptych.methods.freeze import whole
from triptych.models.full import save_model
from triptych.models.stored import as_saved
from triptych.models.weights import read_weights
from triptych.recipe.method import Freeze, Full


@each_mixture
@pytest.mark.parametrize("part", ["", "layers.1."])
def test_a_trained_mixture_is_written_as_its_base_and_read_as_it_was_trained(
    tmp_path: Path, name: str, part: str
) -> None:
    """All of it, or one block beside what the base's files hold of the others."""
    base = saved(tmp_path, name)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained: dict[str, Tensor] = {}
    with torch.no_grad():
        for at, (own, parameter) in enumerate(model.named_parameters()):
            if part in own:
                trained[own] = parameter.add_(0.01 * (at + 1)).detach()
    weights = whole(Freeze(layers=1) if part else Full(), base, as_saved(model, trained, base))
    files = {name: tensor.shape for name, tensor in read_weights(base).items()}
    assert {name: tensor.shape for name, tensor in weights.items()} == files
    (tmp_path / "written").mkdir()
    save_model(tmp_path / "written", base, weights, torch.float32, {})
    read = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "written", dtype=torch.float32).named_parameters())
    assert read.keys() == before.keys()
    for own, parameter in read.items():
        assert torch.equal(parameter, trained.get(own, before[own])), own
