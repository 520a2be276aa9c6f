"""Tiny roles, and a batch of each objective: what the gradient tests, on one rank and on several, have in common."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.families import tiny
from triptych.algorithms.base import Algorithm
from triptych.algorithms.table import algorithm_of
from triptych.forward.roles import BASE, RoleModel
from triptych.models.base import load_causal_lm
from triptych.models.heads import ScalarHead
from triptych.objectives.aggregation import Aggregation
from triptych.objectives.distillation import Divergence
from triptych.recipe import Full, Lora, Method, Optimizer, Rl
from triptych.recipe.method import Freeze
from triptych.recipe.preference import Sigmoid
from triptych.train.batch import Batch, answer_batch, language_batch, pair_batch, sample_batch
from triptych.train.learner import Learner, Objective
from triptych.train.tasks.dpo import PairPreference
from triptych.train.tasks.kto import UnpairedPreference, mismatched
from triptych.train.tasks.language import LanguageModeling
from triptych.train.tasks.reward import PairwiseReward
from triptych.train.tasks.rl import KlLoss, PolicyUpdate, ValueUpdate
from triptych.train.tasks.rrhf import RankedPreference
from triptych.train.tasks.teaching import Teaching

PAD = 0
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def make_model(
    folder: Path,
    dtype: torch.dtype,
    *,
    roles: tuple[str, ...] = ("policy", "critic"),
    method: str = "lora",
    **settings: Any,
) -> RoleModel:
    torch.manual_seed(0)
    model = RoleModel(load_causal_lm(folder, dtype), **settings)
    for role in roles:
        head = ScalarHead(model.hidden_size) if role == "critic" else None
        model.add(role, Full() if method == "full" else Lora(r=4, alpha=8), trainable=True, head=head)
        with torch.no_grad():
            for name, parameter in model.parameters_of(role).items():
                if "lora_B" in name:  # zero at the start, which would hide lora_A's gradient
                    parameter.normal_(std=0.1)
    return in_float64(model) if dtype == torch.float64 else model


def in_float64(model: RoleModel) -> RoleModel:
    """transformers' norms compute in float32 whatever the model's precision."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(rms_norm, module)
    return model.double()


def rms_norm(module: Any, hidden: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(hidden, module.weight.shape, module.weight, module.variance_epsilon)


def make_learner(model: RoleModel, **settings: Any) -> Learner:
    roles = list(model.trainable)
    return Learner(model, dict.fromkeys(roles, Optimizer(lr=1e-2)), dict.fromkeys(roles, 10), **settings)


def make_mixture() -> RoleModel:
    """A tiny mixture of experts in float64, with LoRA on them."""
    model = RoleModel(tiny("qwen3_moe", torch.float64))
    torch.manual_seed(0)
    model.add("policy", Lora(r=4), trainable=True)
    for parameter in model.parameters_of("policy").values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


WHOLE_METHODS: dict[str, Method] = {"full": Full(), "freeze": Freeze(layers=1)}


def make_untied(dtype: torch.dtype, method: Method) -> RoleModel:
    """A tiny model whose output head has weights of its own, which scores nothing: a reward model by its base."""
    torch.manual_seed(0)
    model = RoleModel(tiny("llama", dtype))
    model.add("critic", method, trainable=True, head=ScalarHead(model.hidden_size))
    return in_float64(model) if dtype == torch.float64 else model


def few_pairs(indexes: list[int]) -> Batch:
    """As `pairs`, in the tokens that a tiny family knows."""
    made = [[token % 90 + 3 for part in row for token in part] for row in rows(16)]
    return pair_batch([(made[2 * i], made[2 * i + 1]) for i in indexes], PAD)


def few_words(indexes: list[int]) -> Batch:
    """As `language`, in the tokens that a tiny mixture knows."""
    chosen = [[[token % 90 + 3 for token in part] for part in rows()[index]] for index in indexes]
    return language_batch([(p + a, [-100] * len(p) + a) for p, a in chosen], PAD)


def rows(count: int = 8) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(count):
        prompt = torch.randint(5, 300, (3 + index % 4,), generator=generator).tolist()
        answer = torch.randint(5, 300, (2 + (index * 5) % 7,), generator=generator).tolist()
        made.append((prompt, answer))
    return made


def columns(count: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    names = ("old_logprobs", "advantages", "old_values", "returns", "reference")
    made = {name: torch.randn(count, 9, generator=generator).to(dtype) for name in names}
    return made | {"weights": torch.rand(count, 9, generator=generator).to(dtype) + 0.5}


def language(indexes: list[int], dtype: torch.dtype) -> Batch:
    chosen = [rows()[index] for index in indexes]
    return language_batch([(p + a, [-100] * len(p) + a) for p, a in chosen], PAD)


def pairs(indexes: list[int], dtype: torch.dtype) -> Batch:
    made = rows(16)
    return pair_batch(
        [([*made[2 * i][0], *made[2 * i][1]], [*made[2 * i + 1][0], *made[2 * i + 1][1]]) for i in indexes], PAD
    )


def preferences(indexes: list[int], dtype: torch.dtype) -> Batch:
    """Pairs of answers to one prompt, and what a reference makes of them."""
    made = rows(16)
    prompts = [made[2 * i][0] for i in indexes]
    sequences = [p + made[2 * i + side][1] for side in (0, 1) for i, p in zip(indexes, prompts, strict=True)]
    generator = torch.Generator().manual_seed(3)
    references = 10 * torch.randn(2, 8, generator=generator, dtype=torch.float64) - 30
    batch = answer_batch(sequences, [len(prompt) for prompt in prompts] * 2, PAD)
    return batch | {"ref_chosen": references[0][indexes], "ref_rejected": references[1][indexes]}


def unpaired(indexes: list[int], dtype: torch.dtype) -> Batch:
    """Answers, every second one desirable, and the same prompts with the answer of the next row."""
    made = rows()
    prompts = [made[i][0] for i in indexes]
    own, other = ([p + made[(i + n) % 8][1] for i, p in zip(indexes, prompts, strict=True)] for n in (0, 1))
    starts = [len(prompt) for prompt in prompts]
    generator = torch.Generator().manual_seed(4)
    references = 10 * torch.randn(2, 8, generator=generator, dtype=torch.float64) - torch.tensor([[30.0], [45.0]])
    named = {"ref_logps": references[0][indexes], "ref_mismatched": references[1][indexes]}
    desirable = {"desirable": torch.tensor(indexes) % 2 == 0}
    return answer_batch(own, starts, PAD) | mismatched(answer_batch(other, starts, PAD)) | named | desirable


def rankings(indexes: list[int], dtype: torch.dtype) -> Batch:
    """Two to four answers to each prompt, the best first; of four the middle two tie."""
    made, counts = rows(32), [2 + i % 3 for i in indexes]
    prompts = [made[i][0] for i, count in zip(indexes, counts, strict=True) for _ in range(count)]
    answers = [made[4 * i + place][1] for i, count in zip(indexes, counts, strict=True) for place in range(count)]
    scores = torch.cat(
        [torch.tensor([0.9, 0.5, 0.5, 0.1])[:count] if count > 3 else -torch.arange(float(count)) for count in counts]
    )
    query = torch.tensor(indexes).repeat_interleave(torch.tensor(counts))
    sequences = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    return answer_batch(sequences, [len(prompt) for prompt in prompts], PAD) | {"query": query, "score": scores}


def samples(indexes: list[int], dtype: torch.dtype) -> Batch:
    chosen = [rows()[index] for index in indexes]
    batch = sample_batch([p for p, _ in chosen], [a for _, a in chosen], PAD)
    return batch | {name: column[indexes] for name, column in columns(8, dtype).items()}


def algorithm(name: str, **settings: Any) -> Algorithm:
    """An algorithm with the settings of its own that are given."""
    stage = {
        "kind": "rl",
        "policy": "sft@1",
        "rewards": [{"stage": "reward@1"}],
        "data": {"train": {"path": "prompts.jsonl"}},
        "train": {"steps": 1},
        "algorithm": {"name": name, **settings},
    }
    return algorithm_of(Rl.model_validate(stage))


PPO = algorithm("ppo", clip=0.2, value_clip=0.2)
assert PPO.value_loss is not None

CASES: dict[str, tuple[Objective, Callable[[list[int], torch.dtype], Batch]]] = {
    "language": (LanguageModeling("policy"), language),
    "pairs": (PairwiseReward("critic"), pairs),
    "dpo": (PairPreference("policy", Sigmoid(label_smoothing=0.1), sft_weight=0.3), preferences),
    "kto": (UnpairedPreference("policy", 0.1, undesirable_weight=1.5), unpaired),
    "rrhf": (RankedPreference("policy", sft_weight=0.3), rankings),
    "policy": (PolicyUpdate("policy", PPO.policy_loss, 0.7), samples),
    "value": (ValueUpdate("critic", PPO.value_loss), samples),
    "policy, a mean of answers, with KL": (
        PolicyUpdate("policy", PPO.policy_loss, 0.7, Aggregation("sequence", 9), KlLoss(0.3, "k2")),
        samples,
    ),
    "policy, over a constant": (PolicyUpdate("policy", PPO.policy_loss, 0.7, Aggregation("constant", 9)), samples),
    "policy, with the reverse KL to a teacher": (
        PolicyUpdate(
            "policy", PPO.policy_loss, 0.7, teaching=Teaching(Divergence("reverse_kl", temperature=0.7), BASE)
        ),
        samples,
    ),
    "policy, a mean of answers, with a divergence between teacher and policy": (
        PolicyUpdate(
            "policy",
            PPO.policy_loss,
            0.7,
            Aggregation("sequence", 9),
            KlLoss(0.3, "k2"),
            Teaching(Divergence("jsd", 0.3, 0.7), BASE),
        ),
        samples,
    ),
    "gspo": (PolicyUpdate("policy", algorithm("gspo", clip=0.2).policy_loss, 0.7, Aggregation("sequence", 9)), samples),
    "cispo": (PolicyUpdate("policy", algorithm("cispo").policy_loss, 0.7), samples),
}


def gradients(learner: Learner, objective: Objective, batches: list[Batch | None]) -> dict[str, Tensor]:
    learner.accumulate(objective, batches)
    found = {name: grad.clone() for name, grad in learner.gradients(objective.role).items()}
    learner.strategy.discard_gradients(objective.role)
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    error, name = worst_error(found, expected)
    assert error <= tolerance, name


def worst_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """max|difference| / max|gradient| of a tensor, and the tensor's name, for the tensor where it is largest."""
    assert found.keys() == expected.keys()
    largest = max(tensor.abs().max() for tensor in expected.values())
    assert largest > 0
    errors = []
    for name, tensor in expected.items():
        # A gradient that is zero but for rounding, such as that of a bias that pairs cancel, is held to the others'.
        scale = tensor.abs().max() if tensor.abs().max() > 1e-5 * largest else largest
        error = (found[name] - tensor).abs().max() / scale
        errors.append((float(error.nan_to_num(nan=torch.inf)), name))
    return max(errors)
