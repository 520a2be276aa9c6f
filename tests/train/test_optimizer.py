"""Each optimizer against its paper's equations in float64, its resumption, its groups; and the schedules."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support import rank_optimizers
from tests.support.ranks import Ranks
from triptych.recipe import Optimizer
from triptych.train.optimizer import averaging, build_optimizer, learning_rate
from triptych.train.optimizers.adamw_8bit import dequantize, quantize
from triptych.train.optimizers.muon import newton_schulz

STEPS = 6
SHAPES = {"model.layers.0.proj.weight": (64, 128), "model.layers.0.norm.weight": (32,), "model.embed.weight": (96, 64)}
MATRIX = "model.layers.0.proj.weight"
CONFIGS = {
    "adamw": Optimizer(lr=1e-2, weight_decay=0.1),
    "adamw_8bit": Optimizer(name="adamw_8bit", lr=1e-2, weight_decay=0.1),
    "sgd": Optimizer(name="sgd", lr=1e-2, weight_decay=0.1),
    "nesterov": Optimizer(name="sgd", lr=1e-2, nesterov=True, momentum=0.8),
    "plain": Optimizer(name="sgd", lr=1e-2, momentum=0.0),
    "lion": Optimizer(name="lion", lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1),
    "muon": Optimizer(name="muon", lr=1e-2, momentum=0.95, weight_decay=0.1),
    "schedule_free": Optimizer(name="adamw_schedule_free", lr=1e-2, weight_decay=0.1, warmup=0.5),
}


def start(dtype: torch.dtype) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return {name: nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for name, s in SHAPES.items()}


def gradient(name: str, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + sorted(SHAPES).index(name))
    return torch.randn(SHAPES[name], generator=generator, dtype=torch.float64) * 0.1


def advance(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], config: Optimizer, steps: range
) -> None:
    for step in steps:
        for name, parameter in named.items():
            parameter.grad = gradient(name, step).to(parameter.dtype)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, STEPS) * group["lr_scale"]
        optimizer.step()


# ----- references: w [..], its name -> w after STEPS steps, from the papers' equations


def reference_adamw(w: Tensor, name: str, config: Optimizer, keep: Callable[[Tensor, bool], Tensor]) -> Tensor:
    """`keep`: what the state keeps of a moment; True for the first moment."""
    m, v, (b1, b2) = torch.zeros_like(w), torch.zeros_like(w), config.betas
    decay = config.weight_decay if w.ndim > 1 else 0.0
    for t in range(1, STEPS + 1):
        lr, g = learning_rate(config, t - 1, STEPS), gradient(name, t - 1)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w - lr * decay * w - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + config.eps)
        m, v = keep(m, True), keep(v, False)
    return w


def exactly(moment: Tensor, signed: bool) -> Tensor:
    return moment


def in_8_bits(moment: Tensor, signed: bool) -> Tensor:
    """The nearest value of the dynamic tree type: leading zeros are the decimal exponent, the rest is the fraction."""
    if moment.ndim == 1:
        return moment
    bits = 6 if signed else 7
    magnitudes = [
        10.0**-zeros * (0.1 + 0.9 * (fraction + 0.5) / 2 ** (bits - zeros))
        for zeros in range(7)
        for fraction in range(2 ** (bits - zeros))
    ]
    table = torch.tensor([0.0, 1.0, *magnitudes, *([-x for x in magnitudes] if signed else [])], dtype=torch.float64)
    assert len(table) == 256
    blocks = moment.reshape(-1, 64)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    nearest = (blocks / scale)[..., None].sub(table).abs().argmin(dim=-1)
    return (table[nearest] * scale).reshape(moment.shape)


def reference_sgd(w: Tensor, name: str, config: Optimizer) -> Tensor:
    velocity = torch.zeros_like(w)
    for t in range(STEPS):
        g = gradient(name, t) + (config.weight_decay * w if w.ndim > 1 else 0.0)
        velocity = config.momentum * velocity + g
        w = w - learning_rate(config, t, STEPS) * (g + config.momentum * velocity if config.nesterov else velocity)
    return w


def reference_lion(w: Tensor, name: str, config: Optimizer) -> Tensor:
    m, (b1, b2) = torch.zeros_like(w), config.betas
    decay = config.weight_decay if w.ndim > 1 else 0.0
    for t in range(STEPS):
        lr, g = learning_rate(config, t, STEPS), gradient(name, t)
        w = w - lr * (torch.sign(b1 * m + (1 - b1) * g) + decay * w)
        m = b2 * m + (1 - b2) * g
    return w


def reference_muon(w: Tensor, name: str, config: Optimizer) -> Tensor:
    """The polynomial of Newton and Schulz acts on singular values: apply it to those of an exact decomposition."""
    if name != MATRIX:
        return reference_adamw(w, name, config, exactly)
    b, mu = torch.zeros_like(w), config.momentum
    for t in range(STEPS):
        lr, g = learning_rate(config, t, STEPS), gradient(name, t)
        b = mu * b + g
        u, s, vh = torch.linalg.svd(g * (1 - mu) + mu * (1 - mu) * b, full_matrices=False)
        s = s / s.norm()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        w = w * (1 - lr * config.weight_decay) - lr * 0.2 * math.sqrt(max(w.shape)) * (u * s) @ vh
    return w


def reference_schedule_free(w: Tensor, name: str, config: Optimizer) -> tuple[Tensor, Tensor]:
    """(y, x)."""
    x, y, z, v, total, (b1, b2) = w, w, w, torch.zeros_like(w), 0.0, config.betas
    decay = config.weight_decay if w.ndim > 1 else 0.0
    for t in range(1, STEPS + 1):
        lr, g = learning_rate(config, t - 1, STEPS), gradient(name, t - 1)
        v = b2 * v + (1 - b2) * g**2
        z = z - lr * (g / ((v / (1 - b2**t)).sqrt() + config.eps) + decay * y)
        total += lr**2
        x = (1 - lr**2 / total) * x + lr**2 / total * z
        y = (1 - b1) * z + b1 * x
    return y, x


REFERENCES: dict[str, Callable[[Tensor, str, Optimizer], Tensor]] = {
    "adamw": lambda w, name, config: reference_adamw(w, name, config, exactly),
    "adamw_8bit": lambda w, name, config: reference_adamw(w, name, config, in_8_bits),
    "sgd": reference_sgd,
    "nesterov": reference_sgd,
    "plain": reference_sgd,
    "lion": reference_lion,
    "muon": reference_muon,
    "schedule_free": lambda w, name, config: reference_schedule_free(w, name, config)[0],
}


@pytest.mark.parametrize("case", CONFIGS)
def test_follows_the_equations_of_the_paper(case: str) -> None:
    named, config = start(torch.float64), CONFIGS[case]
    advance(build_optimizer(named, config), named, config, range(STEPS))
    eight_bits = case == "adamw_8bit"
    for name, first in start(torch.float64).items():
        expected = REFERENCES[case](first.detach(), name, config)
        error = (named[name].detach() - expected).abs().flatten().sort(descending=True).values
        assert error[0] < (1e-3 if eight_bits else 1e-11)
        assert error[3] < (1e-6 if eight_bits else 1e-11)  # values right between two codes may fall to either
        assert (expected - first).abs().mean() > 1e-4


@pytest.mark.parametrize("case", CONFIGS)
def test_goes_on_exactly_from_saved_tensors(case: str, tmp_path: Path) -> None:
    config, half = CONFIGS[case], STEPS // 2
    whole = start(torch.float32)
    optimizer = build_optimizer(whole, config)
    advance(optimizer, whole, config, range(half))
    saved = {f"value/{name}": parameter.detach() for name, parameter in whole.items()}
    saved |= {f"{key}/{name}": v for name, p in whole.items() for key, v in optimizer.state[p].items()}
    save_file(saved, tmp_path / "state.safetensors")
    advance(optimizer, whole, config, range(half, STEPS))

    tensors = load_file(tmp_path / "state.safetensors")
    resumed = {name: nn.Parameter(tensors[f"value/{name}"]) for name in SHAPES}
    optimizer = build_optimizer(resumed, config)
    for key, tensor in tensors.items():
        kind, name = key.split("/")
        if kind != "value":
            optimizer.state[resumed[name]][kind] = tensor
    advance(optimizer, resumed, config, range(half, STEPS))
    for name in SHAPES:
        assert torch.equal(resumed[name], whole[name]), name


def test_schedule_free_average_is_lent_and_given_back() -> None:
    named, config = start(torch.float64), CONFIGS["schedule_free"]
    optimizer = build_optimizer(named, config)
    averaging(optimizer, on=True)  # before the first step: there is nothing to average
    assert torch.equal(named[MATRIX], start(torch.float64)[MATRIX])
    averaging(optimizer, on=False)
    advance(optimizer, named, config, range(STEPS))
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    for _ in range(2):  # on twice is on
        averaging(optimizer, on=True)
        for name, first in start(torch.float64).items():
            x = reference_schedule_free(first.detach(), name, config)[1]
            torch.testing.assert_close(named[name].detach(), x, rtol=0, atol=1e-11)
            assert not torch.allclose(named[name], before[name], atol=1e-6)
    for _ in range(2):
        averaging(optimizer, on=False)
        for name, parameter in named.items():
            assert torch.equal(parameter, before[name])


def test_others_have_no_average() -> None:
    named, config = start(torch.float32), CONFIGS["adamw"]
    optimizer = build_optimizer(named, config)
    advance(optimizer, named, config, range(1))
    before = named[MATRIX].detach().clone()
    averaging(optimizer, on=True)
    assert torch.equal(named[MATRIX], before)


def test_muon_agrees_with_torch() -> None:
    """torch's own Muon, which iterates in bfloat16."""
    ours, theirs = start(torch.float32)[MATRIX], start(torch.float32)[MATRIX]
    config = CONFIGS["muon"]
    first = build_optimizer({MATRIX: ours}, config)
    second = torch.optim.Muon(
        [theirs], lr=config.lr, weight_decay=0.1, momentum=config.momentum, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(STEPS):
        for parameter in (ours, theirs):
            parameter.grad = gradient(MATRIX, step).float()
        first.step()
        second.step()
    moved = (ours - start(torch.float32)[MATRIX]).norm()
    assert (ours - theirs).norm() < 0.02 * moved


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (16, 16)])
def test_newton_schulz_makes_singular_values_equal(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    values = torch.linalg.svdvals(newton_schulz(matrix))
    assert values.min() > 0.3
    assert values.max() < 1.3
    assert torch.equal(newton_schulz(torch.zeros(shape)), torch.zeros(shape))


def test_8_bits_keep_every_magnitude() -> None:
    torch.manual_seed(0)
    values = torch.randn(8, 256) * 10.0 ** torch.arange(-20, 20, 5)[:, None]
    for signed in (True, False):
        kept = values if signed else values.abs()
        codes, scale = quantize(kept, signed=signed)
        error = (dequantize(codes, scale, signed=signed) - kept).abs().unflatten(1, (-1, 64))
        assert codes.dtype == torch.uint8
        assert (error <= scale[..., None] * (0.0071 if signed else 0.0036)).all()
    codes, scale = quantize(torch.zeros(2, 64), signed=True)
    assert torch.equal(dequantize(codes, scale, signed=True), torch.zeros(2, 64))


def test_8_bit_state_is_about_a_quarter() -> None:
    parameter = nn.Parameter(torch.zeros(64, 128))
    named = {"proj.weight": parameter}
    sizes = {}
    for case in ("adamw", "adamw_8bit"):
        optimizer = build_optimizer(named, CONFIGS[case])
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        sizes[case] = sum(tensor.nbytes for tensor in optimizer.state[parameter].values())
    assert sizes["adamw_8bit"] < 0.27 * sizes["adamw"]


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "sgd", "lion", "muon", "adamw_schedule_free"])
def test_groups_by_rate_and_decay(name: str) -> None:
    layer = "base_model.model.model.layers.0.self_attn"
    named = {
        f"{layer}.q_proj.lora_A.weight": nn.Parameter(torch.zeros(4, 8)),
        f"{layer}.q_proj.lora_B.weight": nn.Parameter(torch.zeros(8, 4)),
        "base_model.model.model.embed_tokens.lora_embedding_A": nn.Parameter(torch.zeros(4, 8)),
        "base_model.model.model.embed_tokens.lora_embedding_B": nn.Parameter(torch.zeros(8, 4)),
        f"{layer}.q_proj.bias": nn.Parameter(torch.zeros(8)),
        "head.weight": nn.Parameter(torch.zeros(1, 8)),
    }
    config = Optimizer.model_validate({"name": name, "lr": 1e-3, "lora_plus": 16, "weight_decay": 0.5})
    optimizer = build_optimizer(named, config)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == len(named)
    for path, parameter in named.items():
        group = found[id(parameter)]
        assert group["lr_scale"] == (16 if "lora_B" in path or "lora_embedding_B" in path else 1), path
        assert group["lr"] == pytest.approx(1e-3 * group["lr_scale"])
        assert group["weight_decay"] == (0.0 if path.endswith("bias") else 0.5), path
        if name == "muon":
            assert group["orthogonal"] == (".q_proj.lora_" in path), path


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
VECTORS = {
    "model.norm.weight": (64,),
    "model.layers.0.self_attn.q_norm.weight": (4, 16),  # cohere: a gain of each head
    "transformer.h.0.ln_1.weight": (64,),
    f"{LAYER}.bias": (64,),
    "model.layers.0.mlp.experts.gate_up_proj_bias": (8, 128),
    "model.layers.0.temporal_block.rg_lru.input_gate_bias": (4, 16),
    "model.layers.0.mamba.A_log": (64, 16),
    "model.layers.0.mamba.D": (2, 64),
    "rwkv.blocks.0.attention.time_mix_key": (1, 1, 64),
    "model.layers.0.self_attn.forget_gate.A_log": (1, 1, 8, 1),
    f"{LAYER}.lora_E": (12, 1),
    f"adalora.{LAYER}.lora_E": (12, 1),
    f"{LAYER}.ia3_l": (1, 64),
    f"{LAYER}.boft_s": (64, 1),
    f"{LAYER}.lora_magnitude_vector": (64,),
    f"{LAYER}.vera_lambda_d": (256,),
    f"{LAYER}.randlora_gamma": (2, 64),
    f"{LAYER}.randlora_lambda": (32, 2),
}
MATRICES = {
    f"{LAYER}.lora_A.weight": (1, 64),  # rank 1
    f"{LAYER}.lora_B.weight": (64, 1),
    f"{LAYER}.lora_A": (12, 64),
    "head.weight": (1, 64),
    "model.embed_tokens.weight": (96, 64),
    "model.layers.0.mlp.experts.down_proj": (8, 64, 64),
    "model.layers.0.conv.conv.weight": (64, 1, 3),
    f"{LAYER}.boft_R": (1, 16, 4, 4),
    "prompt_embeddings": (20, 64),
}


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "sgd", "lion", "muon", "adamw_schedule_free"])
def test_weight_decay_takes_from_matrices_alone(name: str) -> None:
    """A step without gradients moves what decays, and nothing else, however it is stored."""
    named = {path: nn.Parameter(torch.ones(shape)) for path, shape in (VECTORS | MATRICES).items()}
    config = Optimizer.model_validate({"name": name, "lr": 0.1, "weight_decay": 0.5})
    optimizer = build_optimizer(named, config)
    for parameter in named.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    left = {path: parameter.detach().unique().tolist() for path, parameter in named.items()}
    assert left == {**{path: [1.0] for path in VECTORS}, **{path: [pytest.approx(0.95)] for path in MATRICES}}


def test_muon_leaves_vectors_to_adamw() -> None:
    named = {path: nn.Parameter(torch.ones(shape)) for path, shape in VECTORS.items()}
    assert not any(group["orthogonal"] for group in build_optimizer(named, Optimizer(name="muon")).param_groups)


@pytest.mark.parametrize(
    ("name", "orthogonal"),
    [
        ("layers.0.mlp.down_proj.weight", True),
        ("transformer.h.0.attn.c_attn.weight", True),
        ("embed_tokens.weight", False),
        ("model.decoder.embed_positions.weight", False),
        ("transformer.wte.weight", False),
        ("bert.embeddings.word_embeddings.weight", False),
        ("lm_head.weight", False),
        ("score.weight", False),
        ("classifier.weight", False),
    ],
)
def test_muon_takes_hidden_matrices_alone(name: str, orthogonal: bool) -> None:
    optimizer = build_optimizer({name: nn.Parameter(torch.zeros(4, 4))}, Optimizer(name="muon"))
    assert optimizer.param_groups[0]["orthogonal"] is orthogonal


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 0.25, 3: 1.0, 4: 1.0, 19: 1.0}),
        ("linear", {0: 0.25, 3: 1.0, 4: 1.0, 12: 0.5, 19: 1 / 16, 20: 0.0, 30: 0.0}),
        ("cosine", {0: 0.25, 3: 1.0, 4: 1.0, 12: 0.5, 16: (1 + math.cos(0.75 * math.pi)) / 2, 20: 0.0, 30: 0.0}),
        ("wsd", {0: 0.25, 3: 1.0, 4: 1.0, 14: 1.0, 15: 1.0, 16: 0.8, 19: 0.2, 20: 0.0, 30: 0.0}),
    ],
)
def test_rate_at_the_corners(schedule: str, expected: dict[int, float]) -> None:
    config = Optimizer.model_validate({"lr": 2.0, "schedule": schedule, "warmup": 0.2, "decay": 0.25})
    for step, rate in expected.items():
        assert learning_rate(config, step, 20) == pytest.approx(2 * rate, abs=1e-12), step


def test_rate_of_short_runs() -> None:
    config = Optimizer(lr=1.0, schedule="wsd", decay=0.0)
    assert [learning_rate(config, step, 3) for step in range(3)] == [1.0, 1.0, 1.0]
    config = Optimizer(lr=1.0, schedule="wsd", warmup=0.5, decay=0.5)
    assert [learning_rate(config, step, 3) for step in range(3)] == [0.5, 1.0, 0.5]
    config = Optimizer(lr=1.0, schedule="linear", warmup=1.0)
    assert [learning_rate(config, step, 2) for step in range(2)] == [0.5, 1.0]


@pytest.mark.slow
def test_sharded_parameters_are_updated_as_whole_ones(ranks: Ranks, tmp_path: Path) -> None:
    for place in ("whole", "sharded"):
        (tmp_path / place).mkdir()
    rank_optimizers.save_steps(CONFIGS, STEPS, tmp_path / "whole")
    ranks.run(rank_optimizers.save_steps, CONFIGS, STEPS, tmp_path / "sharded")
    for case in CONFIGS:
        whole, sharded = (load_file(tmp_path / place / f"{case}.safetensors") for place in ("whole", "sharded"))
        assert whole.keys() == sharded.keys()
        # The remainder of a loop over float64s rounds differently; 8-bit moments may fall to the next code.
        for name, tensor in whole.items():
            atol = 1e-12 if case != "adamw_8bit" else 1 if tensor.dtype == torch.uint8 else 1e-6
            assert sharded[name].dtype == tensor.dtype
            assert (sharded[name].double() - tensor.double()).abs().max() <= atol, (case, name)
