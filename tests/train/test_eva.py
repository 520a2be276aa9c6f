"""EVA starts A as the directions in which a layer's inputs vary most, the same on every rank and in every layout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import EvaConfig, LoraConfig
from peft.tuners.lora.eva import get_eva_state_dict
from torch import Tensor

from tests.support.gradient_cases import language
from triptych.forward.roles import BASE, RoleModel
from triptych.models.base import load_causal_lm
from triptych.models.peft_files import PREFIX
from triptych.recipe.matrix import Lora
from triptych.recipe.method import Method
from triptych.recipe.virtual import PTuningV2
from triptych.train.batch import Batch
from triptych.train.eva import start_from_inputs
from triptych.train.group import Group

METHOD = Lora(r=4, init="eva", rank_pattern={"k_proj": 2})
BATCHES = [language(rows, torch.float32) for rows in ([0, 1, 2, 3, 4], [5, 6, 7, 1], [2, 4, 6, 0])]


def started(folder: Path, batches: list[Batch], method: Method = METHOD, **settings: Any) -> RoleModel:
    torch.manual_seed(0)
    model = RoleModel(load_causal_lm(folder, torch.float32), **settings)
    model.add("policy", method, trainable=True)
    start_from_inputs(model, ["policy"], batches, Group())
    return model


def a_of(model: RoleModel, before: str = "") -> dict[str, Tensor]:
    """A of each layer, by the layer's name."""
    ending, start = ".lora_A.weight", f"{before}{PREFIX}"
    named = model.adapter("policy").items()
    return {n.removeprefix(start).removesuffix(ending): t for n, t in named if n.endswith(ending)}


def inputs(folder: Path, batches: list[Batch]) -> dict[str, Tensor]:
    """What every linear layer reads, [n, inputs], about its mean; from plain transformers, row by row."""
    model = load_causal_lm(folder, torch.float32)
    read: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            read[name] = []
            module.register_forward_pre_hook(lambda _, args, found=read[name]: found.append(args[0][0]))
    for batch in batches:
        for ids, mask in zip(batch["ids"], batch["mask"].bool(), strict=True):
            with torch.no_grad():
                model(ids[mask][None])
    return {name: (x := torch.cat(found)) - x.mean(dim=0) for name, found in read.items()}


@pytest.mark.parametrize("packing", [True, False])
def test_one_batch_gives_its_principal_components(tiny_model_dir: Path, packing: bool) -> None:
    model = started(tiny_model_dir, BATCHES[:1], packing=packing)
    expected = inputs(tiny_model_dir, BATCHES[:1])
    found = a_of(model)
    assert found.keys() == expected.keys()
    for name, a in found.items():
        assert len(a) == (2 if name.endswith("k_proj") else 4)
        torch.testing.assert_close(a @ a.T, torch.eye(len(a)), atol=1e-4, rtol=0)
        most = torch.linalg.svdvals(expected[name])[: len(a)].square().sum()
        assert (expected[name] @ a.T).square().sum() > 0.95 * most, name


@pytest.mark.slow
def test_it_is_what_peft_finds(tiny_model_dir: Path) -> None:
    """Over the same batches until its directions have settled; peft sees rows padded, so these are of one length."""
    rows = [torch.randint(5, 300, (6, 9), generator=torch.Generator().manual_seed(n)) for n in range(3)]
    batches = [{"ids": ids, "mask": torch.ones_like(ids)} for ids in rows]
    config = LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], init_lora_weights="eva", eva_config=EvaConfig(rho=1.0)
    )
    given = [{"input_ids": batch["ids"], "attention_mask": batch["mask"]} for batch in batches]
    plain = load_causal_lm(tiny_model_dir, torch.float32)
    theirs = get_eva_state_dict(plain, given, config, show_progress_bar=False)
    ours = a_of(started(tiny_model_dir, batches, Lora(r=4, init="eva", targets=("q_proj", "down_proj"))))
    everything = inputs(tiny_model_dir, batches)
    assert ours.keys() == theirs.keys()
    for name, a in ours.items():
        own, other = ((everything[name] @ x.T).square().sum() for x in (a, theirs[name].to(a)))
        assert own > 0.95 * other, name


def test_roles_in_hybrids_and_with_a_fixed(tiny_model_dir: Path) -> None:
    plain = a_of(started(tiny_model_dir, BATCHES, Lora(r=4, init="eva")))
    for method, before in (
        (Lora(r=4, init="eva", freeze_a=True), ""),
        ((PTuningV2(num_virtual_tokens=3), Lora(r=4, init="eva")), "lora."),
    ):
        found = a_of(started(tiny_model_dir, BATCHES, method), before)
        assert found.keys() == plain.keys()
        assert all(torch.equal(found[name], a) for name, a in plain.items())


def test_the_start_computes_as_the_base_and_repeats(tiny_model_dir: Path) -> None:
    model = started(tiny_model_dir, BATCHES)
    batch = BATCHES[0]
    with torch.no_grad():
        with model.use(BASE):
            base = model.hidden(batch["ids"], batch["mask"])
        with model.use("policy"):
            assert torch.equal(model.hidden(batch["ids"], batch["mask"]), base)
    again = a_of(started(tiny_model_dir, BATCHES))
    random = a_of(started(tiny_model_dir, []))
    for name, a in a_of(model).items():
        assert torch.equal(a, again[name])
        assert not torch.allclose(a, random[name])
