"""Adapter folders: peft reads them without us, and a reward model is whole or refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoModelForCausalLM

from triptych.errors import UserError
from triptych.forward.export import adapter_of
from triptych.forward.roles import BASE, RoleModel
from triptych.models.adapter import Adapter, Normalization, load_adapter, save_adapter
from triptych.models.base import load_causal_lm
from triptych.models.heads import ScalarHead
from triptych.recipe import CRITIC, POLICY, REFERENCE, REWARD, Lora
from triptych.stages.rl.roles import add_roles
from triptych.stages.role_models import RoleModels
from triptych.train.batch import sample_batch
from triptych.train.tasks.forward import mean_scores, response_logprobs, response_values, sequence_scores

ABOUT = {"base": "tiny", "base_fingerprint": "f", "recipe": "r"}


def random_adapter(model: RoleModel, role: str, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn_like(tensor) * 0.1 for name, tensor in model.adapter(role).items()}


@pytest.fixture
def reward(tiny_model_dir: Path) -> Adapter:
    config = Lora(r=4)
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32))
    model.add("any", config, trainable=False)
    head = ScalarHead(model.hidden_size)
    tensors = {"weight": head.weight.detach(), "bias": torch.tensor([0.5])}
    return replace(
        adapter_of(config, random_adapter(model, "any", 1), "reward_model"),
        head=tensors,
        normalization=Normalization(2.0, 4.0),
    )


def test_the_adapter_alone_on_the_original_base_is_the_policy(
    tiny_model_dir: Path, tmp_path: Path, reward: Adapter
) -> None:
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32))
    config = Lora(r=4, alpha=16, rslora=True)
    model.add("sft", config, trainable=False)
    weights = random_adapter(model, "sft", 0)
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32))
    add_roles(RoleModels(lambda folder: model), adapter_of(config, weights, "policy"), reward)
    save_adapter(tmp_path, adapter_of(config, model.adapter(POLICY), "policy"), ABOUT)

    ids = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(3))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), str(tmp_path)).eval()
    with torch.no_grad(), model.use(POLICY):
        logits = model.logits(model.hidden(ids, torch.ones_like(ids)))
        assert torch.allclose(logits, plain(input_ids=ids).logits, atol=1e-5)
    with torch.no_grad(), model.use(BASE):
        assert not torch.allclose(logits, model.logits(model.hidden(ids, torch.ones_like(ids))), atol=1e-2)


def test_ppo_starts_with_equal_pairs_of_roles_on_one_base(tiny_model_dir: Path, reward: Adapter) -> None:
    base = load_causal_lm(tiny_model_dir, torch.float32)
    model = RoleModel(base)
    config = Lora(r=4)
    model.add("sft", config, trainable=False)
    policy = adapter_of(config, random_adapter(model, "sft", 0), "policy")
    base = load_causal_lm(tiny_model_dir, torch.float32)
    frozen = sum(parameter.numel() for parameter in base.parameters())
    model = RoleModel(base)
    add_roles(RoleModels(lambda folder: model), policy, reward)
    assert sum(p.numel() for name, p in model.lm.named_parameters() if "lora_" not in name) == frozen

    batch = sample_batch([[5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14]], pad=0)
    with torch.no_grad():
        logprobs = {}
        for role in (POLICY, REFERENCE, BASE):
            with model.use(role):
                logprobs[role] = response_logprobs(model, batch, 1.0)
        assert torch.equal(logprobs[POLICY], logprobs[REFERENCE])
        assert (logprobs[POLICY] - logprobs[BASE]).abs().max() > 1e-3

        with model.use(REWARD):
            scores = sequence_scores(model, batch)
            values = response_values(model, batch)
        with model.use(CRITIC):
            assert torch.equal(response_values(model, batch), values)
            assert torch.equal(sequence_scores(model, batch), scores)

    raw = RoleModel(load_causal_lm(tiny_model_dir, torch.float32))
    raw.add("raw", reward.method, trainable=False, weights=reward.weights, head=reward.scalar_head())
    with torch.no_grad(), raw.use("raw"):
        assert torch.allclose(scores, (sequence_scores(raw, batch) - 2.0) / 4.0, atol=1e-6)


@pytest.mark.parametrize("missing", ["head.safetensors", "normalization"])
def test_a_reward_model_without_head_or_normalization_is_refused(tmp_path: Path, reward: Adapter, missing: str) -> None:
    save_adapter(tmp_path, reward, ABOUT)
    assert load_adapter(tmp_path, "reward_model").normalization == Normalization(2.0, 4.0)
    if missing == "normalization":
        facts = json.loads((tmp_path / "triptych.json").read_text())
        del facts["normalization"]
        (tmp_path / "triptych.json").write_text(json.dumps(facts))
    else:
        (tmp_path / missing).unlink()
    with pytest.raises(UserError, match="reward model without its head"):
        load_adapter(tmp_path, "reward_model")


@pytest.fixture
def ensemble(tiny_model_dir: Path, reward: Adapter) -> Adapter:
    """Three members."""
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32))
    model.add("any", reward.method, trainable=False)
    others = []
    for seed in (2, 3):
        weights = random_adapter(model, "any", seed)
        head = {"weight": torch.randn(1, model.hidden_size), "bias": torch.randn(1)}
        others.append(replace(reward, weights=weights, head=head))
    return replace(reward, others=tuple(others))


def test_an_ensemble_is_one_folder_and_peft_reads_each_member(
    tiny_model_dir: Path, tmp_path: Path, ensemble: Adapter
) -> None:
    save_adapter(tmp_path, ensemble, ABOUT)
    assert json.loads((tmp_path / "triptych.json").read_text())["members"] == 3
    loaded = load_adapter(tmp_path, "reward_model")
    for folder, kept, saved in zip(
        (tmp_path, tmp_path / "member-1", tmp_path / "member-2"),
        (loaded, *loaded.others),
        (ensemble, *ensemble.others),
        strict=True,
    ):
        assert kept.normalization == Normalization(2.0, 4.0)
        assert saved.head is not None
        assert kept.head is not None
        assert torch.equal(kept.head["weight"], saved.head["weight"])
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), str(folder))
        state = get_peft_model_state_dict(plain, save_embedding_layers=False)
        assert state.keys() == saved.weights.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in saved.weights.items())

    (tmp_path / "member-2" / "triptych.json").unlink()
    with pytest.raises(UserError, match=r"member-2: no triptych\.json, without which"):
        load_adapter(tmp_path, "reward_model")


def test_without_a_reward_model_the_critic_is_the_policy_with_values_of_zero(tiny_model_dir: Path) -> None:
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32))
    config = Lora(r=4)
    model.add("sft", config, trainable=False)
    policy = adapter_of(config, random_adapter(model, "sft", 0), "policy")
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32))
    assert add_roles(RoleModels(lambda folder: model), policy) == []
    assert [role for role, trains in model.trainable.items() if trains] == [POLICY, CRITIC]
    assert all(torch.equal(model.adapter(CRITIC)[name], tensor) for name, tensor in model.adapter(POLICY).items())
    batch = sample_batch([[5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14]], pad=0)
    with model.use(CRITIC):
        values = response_values(model, batch)
    assert (values == 0.0).all()
    (values + 1.0).square().sum().backward()
    gradient = dict(model.heads[CRITIC].named_parameters())["weight"].grad
    assert gradient is not None
    assert gradient.abs().max() > 0.0


def test_ppo_scores_by_the_mean_of_the_members_and_starts_the_critic_from_the_first(
    tiny_model_dir: Path, ensemble: Adapter
) -> None:
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32))
    model.add("sft", ensemble.method, trainable=False)
    policy = adapter_of(ensemble.method, random_adapter(model, "sft", 0), "policy")
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32))
    [roles] = add_roles(RoleModels(lambda folder: model), policy, ensemble)
    assert roles == ("reward", "reward-1", "reward-2")
    assert [role for role, trains in model.trainable.items() if trains] == [POLICY, CRITIC]

    batch = sample_batch([[5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14]], pad=0)
    raw = []
    for member in (ensemble, *ensemble.others):
        alone = RoleModel(load_causal_lm(tiny_model_dir, torch.float32))
        alone.add("one", member.method, trainable=False, weights=member.weights, head=member.scalar_head())
        with torch.no_grad(), alone.use("one"):
            raw.append(sequence_scores(alone, batch))
    with torch.no_grad():
        with model.use(REWARD):
            mean = mean_scores(model, batch, roles)
        with model.use(CRITIC):
            critic = sequence_scores(model, batch)
    assert (raw[0] - raw[1]).abs().min() > 1e-2
    assert torch.allclose(mean, (torch.stack(raw).mean(dim=0) - 2.0) / 4.0, atol=1e-5)
    assert torch.allclose(critic, (raw[0] - 2.0) / 4.0, atol=1e-5)


def test_another_kind_is_refused(tmp_path: Path, reward: Adapter) -> None:
    save_adapter(tmp_path, reward, ABOUT)
    with pytest.raises(UserError, match="kind 'reward_model', where 'policy' is needed"):
        load_adapter(tmp_path, "policy")


def test_an_adapter_of_another_shape_is_refused(tiny_model_dir: Path) -> None:
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32))
    model.add("a", Lora(r=4), trainable=False)
    weights = model.adapter("a")
    weights.pop(next(iter(weights)))
    with pytest.raises(UserError, match="its tensors are not those of this model and method"):
        model.load_adapter("a", weights)


def test_the_score_is_read_at_the_last_real_token(tiny_model_dir: Path, reward: Adapter) -> None:
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float64))
    model.add("reward", reward.method, trainable=False, weights=reward.weights, head=reward.scalar_head())
    model = model.double()
    ids = torch.tensor([[5, 6, 7, 2]])

    def score(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), model.use("reward"):
            return sequence_scores(model, {"ids": ids, "mask": mask})

    alone = score(ids, torch.ones_like(ids))
    pad = torch.full((1, 3), 2)  # padding with the end token itself
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    assert torch.allclose(score(torch.cat([ids, pad], dim=1), mask), alone, atol=1e-12)
    assert torch.allclose(score(torch.cat([pad, ids], dim=1), mask.flip(1)), alone, atol=1e-12)
    assert not torch.allclose(score(ids[:, :3], torch.ones(1, 3, dtype=torch.long)), alone)


def test_a_folder_says_its_kind_in_the_words_of_the_version_before_too(tmp_path: Path, reward: Adapter) -> None:
    save_adapter(tmp_path, reward, ABOUT)
    note = json.loads((tmp_path / "triptych.json").read_text())
    assert (note.pop("artifact_kind"), note["kind"]) == ("reward_model", "reward")
    (tmp_path / "triptych.json").write_text(json.dumps(note))
    assert load_adapter(tmp_path, "reward_model").kind == "reward_model"
