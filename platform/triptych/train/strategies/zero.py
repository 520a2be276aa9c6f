"""`zero1`, `zero2`, `zero3`: DeepSpeed shards optimizer state, then gradients, then parameters (arXiv 1910.02054).

Stages 1 and 2 see only what is trained: each role has an engine of its own, and a frozen base keeps its precision.
Stage 3 shards the model itself: one role, and a base in float32 (computation may still be in bfloat16).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn

from triptych.errors import UserError
from triptych.forward.roles import RoleModel
from triptych.recipe import Optimizer
from triptych.recipe.refusals import NOT_GATHERED
from triptych.train.group import Group
from triptych.train.optimizer import build_optimizer
from triptych.train.strategies.base import LOSS_SCALE, VALUE, Slice, Update, state_keys

T = TypeVar("T")


class _Trained(nn.Module):
    """The trained parameters of one role, as the module that an engine wraps."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        for number, parameter in enumerate(parameters.values()):
            self.register_parameter(f"p{number}", parameter)

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()


class Zero:
    """A `Strategy` by DeepSpeed. A backward pass reduces, or ends with a reduction: ranks go in lockstep.

    What cannot run this way is refused by the recipe (recipe/rules.py).
    """

    lockstep = True

    def __init__(
        self,
        model: RoleModel,
        optimizers: Mapping[str, Optimizer],
        group: Group,
        *,
        stage: Literal[1, 2, 3],
        offload: bool,
    ) -> None:
        # A kernel that DeepSpeed's inference alone uses, and that it would compile now, for a minute or more.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._whole_model = stage == 3
        self._world, self._rank = group.size, group.rank
        if stage == 3:
            if any(isinstance(module, ParamWrapper) for module in model.modules()):
                raise UserError(f"workers.strategy: {NOT_GATHERED}")
            model.float()
        self.parameters = {role: model.parameters_of(role) for role in optimizers}
        self._engines: dict[str, Any] = {}
        for role, config in optimizers.items():
            named = self.parameters[role]
            optimizer = build_optimizer(named, config, model.rates_of(role))
            for param_group in optimizer.param_groups:
                param_group["lr"] = 0.0  # stage 3 takes a step with zero gradients when it starts
            self._engines[role], *_ = deepspeed.initialize(
                model=model if stage == 3 else _Trained(named),
                optimizer=optimizer,
                config=_config(stage, config.max_grad_norm, offload=offload),
                dist_init_required=False,
            )
            optimizer.state.clear()

    def run(self, role: str, compute: Callable[[], T]) -> T:
        """`compute()` with the parameters at hand."""
        if role not in self._engines and not self._whole_model:
            return compute()  # nothing of it is sharded: it is not trained
        engine = self._engines.get(role) or next(iter(self._engines.values()))  # any of them gathers the whole model
        found: T = engine(compute)
        return found

    def backward(self, role: str, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of one micro-batch; `last` of this step."""
        engine = self._engines[role]
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(loss * self._world, scale_wrt_gas=False)  # it averages over ranks

    def reduce_gradients(self, role: str) -> None:
        """Done in the last backward pass."""

    def gradients(self, role: str) -> dict[str, Tensor]:
        """Full float32 gradients, after `reduce_gradients` and before `update`."""
        return {name: _or_zero(safe_get_full_grad(p), p) for name, p in self.parameters[role].items()}

    def update(self, role: str, rate: float) -> Update:
        """Clip, step with the learning rate `rate`, forget the gradients."""
        engine = self._engines[role]
        for param_group in engine.optimizer.param_groups:
            param_group["lr"] = rate * param_group["lr_scale"]
        engine.step()  # clips, and leaves the step out where the norm is not finite
        return Update(float(engine.get_global_grad_norm()))

    def discard_gradients(self, role: str) -> None:
        """Forget the gradients."""
        sharded = self._engines[role].optimizer
        sharded.zero_grad(set_to_none=True)
        sharded.averaged_gradients = dict.fromkeys(sharded.averaged_gradients) if not self._whole_model else {}

    def values(self, role: str) -> dict[str, Tensor]:
        """Full parameters, detached."""
        return {name: self.value(role, name) for name in self.parameters[role]}

    def value(self, role: str, name: str) -> Tensor:
        """A full parameter, detached."""
        return safe_get_full_fp32_param(self.parameters[role][name]).detach()

    @torch.no_grad()
    def assign(self, role: str, values: Mapping[str, Tensor]) -> None:
        """Overwrite parameters with full values; optimizer states stay."""
        for name, value in values.items():
            self._put(role, self.parameters[role][name], value)

    def loss_factor(self, role: str) -> float:
        """Factor of a loss in `backward`, before gradients are summed over the ranks."""
        return float(self._world)

    def averaging(self, *, on: bool) -> None:
        """Optimizers that average are refused under zero."""

    def slices(self) -> list[Slice]:
        """This rank's share of parameters, optimizer states and loss scale."""
        found: list[Slice] = []
        for role, named in self.parameters.items():
            if self._rank == 0:
                found.append(Slice(f"{role}/{LOSS_SCALE}", (), 0, torch.ones(1, dtype=torch.float64)))
            for name, parameter in named.items():
                for fragment in self._fragments(role, parameter):
                    state = self._engines[role].optimizer.optimizer.state.get(fragment.flat, {})
                    for key, flat in {VALUE: fragment.flat.detach(), **state}.items():
                        found += fragment.slices(f"{role}/{key}/{name}", flat)
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `slices` gave, whole tensors by name."""
        for role, named in self.parameters.items():
            parameter: Any  # DeepSpeed hangs its own attributes on parameters
            for name, parameter in named.items():
                self._put(role, parameter, tensors[f"{role}/{VALUE}/{name}"])
                for fragment in self._fragments(role, parameter):
                    state = self._engines[role].optimizer.optimizer.state[fragment.flat]
                    for key in state_keys(tensors, role, name):
                        fragment.load_state(state, key, tensors[f"{role}/{key}/{name}"])

    def _put(self, role: str, parameter: Any, value: Tensor) -> None:
        """Put a whole value into a parameter, and into the copy that the optimizer updates."""
        if not self._whole_model:
            parameter.copy_(value)
        for fragment in self._fragments(role, parameter):
            fragment.load(fragment.flat, value)
            if self._whole_model:
                parameter.ds_tensor[: fragment.numel].copy_(fragment.of(value))

    def _fragments(self, role: str, parameter: Any) -> list["_Fragment"]:
        """This rank's piece of a parameter: none or one."""
        # DeepSpeed has no public way to say where a parameter's piece lies in the float32 tensor that its optimizer
        # updates, and its `safe_get_*` gather whole tensors, too much for a checkpoint of slices. So this reads the
        # private maps of its two optimizers: stages 1 and 2 cut one flat tensor a group, in which a parameter's piece
        # (`_hp_mapping`; none on ranks that own no part of it) may begin anywhere; stage 3 cuts each parameter into
        # equal pieces, the last one padded, and lays these one after another. A DeepSpeed that renames them fails here
        # with an AttributeError; the tests of resuming would notice if it changed what they mean.
        sharded = self._engines[role].optimizer
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        if not self._whole_model:
            mapping = parameter._hp_mapping
            if mapping is None:
                return []
            flat = sharded.single_partition_of_fp32_groups[mapping.param_group_index]
            place, piece = mapping.hp_fragment_address, mapping.lp_fragment_address
            return [_Fragment(flat, place.start, piece.start, place.numel, shape)]
        group, position, size = sharded.grad_position[sharded.get_param_id(parameter)]
        start = self._rank * size
        numel = min(size, math.prod(shape) - start)
        flat = sharded.fp32_partitioned_groups_flat[group]
        return [_Fragment(flat, position, start, numel, shape)] if numel > 0 else []


@dataclass(frozen=True)
class _Fragment:
    """A rank's piece of a parameter, in the flat tensor that the optimizer updates."""

    flat: Tensor
    position: int
    """Index of the piece's first element in `flat`."""
    start: int
    """Index of the piece's first element in the flattened parameter."""
    numel: int
    shape: tuple[int, ...]

    def of(self, whole: Tensor) -> Tensor:
        """The piece of a whole parameter."""
        return whole.reshape(-1)[self.start : self.start + self.numel]

    def slices(self, name: str, flat: object) -> list[Slice]:
        """The piece of a flat tensor; a number of the whole group goes with each parameter's first piece."""
        if not isinstance(flat, Tensor):
            return []
        if flat.shape != self.flat.shape:
            return [Slice(name, (), 0, flat.reshape(-1))] if self.start == 0 else []
        piece = flat[self.position : self.position + self.numel]
        return [Slice(name, self.shape, self.start, piece)]

    def load(self, flat: Tensor, whole: Tensor) -> None:
        flat[self.position : self.position + self.numel].copy_(self.of(whole))

    def load_state(self, state: dict[str, Any], key: str, whole: Tensor) -> None:
        if whole.shape != torch.Size(self.shape):
            state[key] = whole.clone()
            return
        if key not in state:
            state[key] = torch.zeros_like(self.flat)
        self.load(state[key], whole)


def _config(stage: int, max_grad_norm: float, *, offload: bool) -> dict[str, Any]:
    sharding: dict[str, Any] = {"stage": stage, "overlap_comm": False}
    if offload:
        sharding["offload_optimizer"] = {"device": "cpu"}
    if stage == 3:
        sharding["stage3_param_persistence_threshold"] = 0  # every parameter sharded, small ones too
        if offload:
            sharding["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": sharding,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }


def _or_zero(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor:
    if gradient is None:
        return torch.zeros(getattr(parameter, "ds_shape", parameter.shape), device=parameter.device)
    return gradient.detach().clone()
