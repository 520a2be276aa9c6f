"""Roles on one base model, such as policy, reference and critic: attached methods and heads, of which one is active.

A role is switched by what is attached being a part of the model or not. `requires_grad` is set once, when a role is
added, and never flips.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.errors import UserError
from triptych.forward.activation_checkpointing import checkpoint_blocks
from triptych.forward.attention import PACKED, PADDED
from triptych.forward.expert_lora import fold_experts
from triptych.forward.fused_lora import fuse_lora, is_fused
from triptych.forward.gather import HALF
from triptych.forward.mixing import check_causal, has_values, padded_because
from triptych.forward.passes import Tokens, before_rows, packed_states, packed_together, padded_states, padded_together
from triptych.forward.process_memory import resident_memory
from triptych.methods import apply_method
from triptych.methods.base import Attachment
from triptych.methods.peft_family import PeftAttachment
from triptych.models.blocks import decoder_blocks
from triptych.models.heads import ClassHead, ScalarHead, check_logits, scale_logits
from triptych.objectives.distillation import Predictions
from triptych.objectives.language import chunked_logprobs, token_entropy, token_logprobs
from triptych.recipe.method import Method, parts_of, trains_base
from triptych.recipe.training import Checkpointing
from triptych.recipe.virtual import GatedPrefix, PrefixTuning, PTuningV2

T = TypeVar("T")

BASE = "base"
"""The role without any adapter."""

HEAD = "head."
"""Prefix of the names of a head's parameters, among those of its role."""


WITH_PREFIX = (PrefixTuning, PTuningV2, GatedPrefix)
"""Methods that put keys and values before every row."""


class RoleModel(nn.Module):
    """One causal language model and the roles on it.

    Everything trainable is float32, or float64 on a float64 base; `dtype` is what is computed in, by autocast.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        dtype: torch.dtype | None = None,
        *,
        device: torch.device | None = None,
        packing: bool = True,
        checkpointing: Checkpointing = "none",
        loss_chunk: int | None = 512,
    ) -> None:
        """`dtype` None: the base's. Packing is for models whose tokens meet in attention alone; others pad.

        `device`: where it is to compute, if not where the base lies; a strategy that shards it brings it there.
        `loss_chunk`: tokens whose logits exist at once.

        Raises:
            UserError: a model that is not causal, or whose attention or logits are not computed here as it does.
        """
        super().__init__()
        check_causal(base)
        base.requires_grad_(False)
        self.lm = base
        self._target = device
        self._spread_on: torch.device | None = None
        self.loaded_bytes = _resident_with(base, self.target)
        """Memory of the target that is held with this process's share of the base, and nothing else."""
        self._loaded_on = base.device.type
        self._base_bytes = sum(parameter.nbytes for parameter in base.parameters())
        self.heads = nn.ModuleDict()
        self.trainable: dict[str, bool] = {}
        self.attached: dict[str, dict[str, Attachment]] = {}
        """Role -> prefix of a part's parameter names, empty but in a hybrid -> the part."""
        self.dtype = dtype or base.dtype
        self.padded_because = padded_because(base)
        """The reason why rows of this model cannot be packed; None if they can."""
        self.packing = packing and self.padded_because is None
        self._current = BASE
        self._rows: dict[str, slice] = {}
        self._together: dict[str, tuple[Tensor, Tensor]] = {}
        """Role -> the ids of its batch, and their hidden states, while several roles share a pass."""
        self._whole = False
        self._rates: dict[str, dict[str, float]] = {}
        self._loss_chunk = loss_chunk
        if base._can_set_attn_implementation():
            base.set_attn_implementation(PADDED)
        if has_values(base):
            check_logits(base)
        if self.packing:
            base.set_attn_implementation(PACKED)
        self._checkpointed = checkpoint_blocks(self.blocks(), checkpointing)

    @property
    def device(self) -> torch.device:
        """Device that passes are computed on."""
        return self._spread_on or self.lm.device

    @property
    def target(self) -> torch.device:
        """Device that training is to compute on."""
        return self._target or self.lm.device

    @property
    def hidden_size(self) -> int:
        return int(self.lm.config.hidden_size)

    @property
    def whole(self) -> bool:
        """True if a role trains weights of the base itself: these are float32, whatever is computed in."""
        return self._whole

    def blocks(self) -> list[nn.Module]:
        """The decoder's layers: the units that are sharded and checkpointed."""
        return decoder_blocks(self.lm)

    def spread(self, ranks: int, device: torch.device) -> None:
        """Record that a strategy left each of `ranks` ranks its share of the base, and computes on `device`."""
        held = self._base_bytes if self._loaded_on == device.type else 0
        self.loaded_bytes += self._base_bytes // ranks - held
        self._spread_on = device

    def forward(self, compute: Callable[[], T]) -> T:
        """`compute()`: whoever shards the model wraps this call."""
        return compute()

    def train(self, mode: bool = True) -> "RoleModel":
        """`mode` turns dropout on. Checkpointing does not depend on it."""
        super().train(mode)
        for block in self._checkpointed:
            block.training = True  # all that a block itself takes from this flag; its children have their own
        return self

    def add(
        self,
        role: str,
        method: Method,
        *,
        trainable: bool,
        weights: Mapping[str, Tensor] | None = None,
        head: ScalarHead | ClassHead | None = None,
    ) -> None:
        """Attach a method, new or from `weights` (as `adapter` names them), and a head for a role that scores.

        Raises:
            UserError: the model has no place for the method, or the weights are another model's or method's.
        """
        if self._whole or (self.trainable and trains_base(method)):
            raise ValueError(f"a role that trains the base's own weights has it for itself; there are {self._roles()}")
        self.check_prefix(method)
        with self.use(BASE):  # some methods look at what the base computes
            found = apply_method(self.lm, method, role)
        self.attached[role] = {f"{name}." if len(found) > 1 else "": part for name, part in found.items()}
        self._whole = trains_base(method)
        self._rates[role] = self._own_rates(role, method)
        if weights is not None:
            self.load_adapter(role, weights)
            for part in found.values():
                part.go_on()
        self.trainable[role] = trainable
        self._add_head(role, head)
        for name, trains in self.trainable.items():  # adding one may have flipped others
            for parameter in self.parameters_of(name).values():
                parameter.requires_grad_(trains)
        self._settle_layers()
        self._activate(self._current)

    def add_plain(self, role: str, head: ScalarHead | ClassHead | None = None) -> None:
        """Put a frozen role on the model that is the base itself, perhaps with a head.

        A whole model that was trained elsewhere is loaded as a base of its own, and computes as such a role.
        """
        if self._whole:
            raise ValueError(f"the base's own weights are trained here, by {self._roles()}")
        self.attached[role], self._rates[role], self.trainable[role] = {}, {}, False
        self._add_head(role, head)
        for parameter in self.parameters_of(role).values():
            parameter.requires_grad_(False)

    def remove(self, role: str) -> None:
        """Take away what `add` has attached to the model for a role of plain LoRA."""
        for part in self.attached.pop(role).values():
            if not isinstance(part, PeftAttachment):
                raise ValueError(f"{role}: only peft's adapters can be removed")
            part.remove()
        del self.trainable[role], self._rates[role]
        if role in self.heads:
            del self.heads[role]

    def load_adapter(self, role: str, weights: Mapping[str, Tensor]) -> None:
        """Replace what a role's method holds; every tensor must be there, and no other."""
        own = self.adapter(role)
        odd = sorted(own.keys() ^ weights.keys()) or [n for n, t in own.items() if t.shape != weights[n].shape]
        if odd:
            raise UserError(
                f"adapter of role {role}: its tensors are not those of this model and method, e.g. {odd[:3]}"
            )
        for name, tensor in own.items():
            tensor.copy_(weights[name])

    def adapter(self, role: str) -> dict[str, Tensor]:
        """A role's trained parameters and buffers, detached, each in its own dtype; no head."""
        return {name: tensor.detach() for name, tensor in (self._own_parameters(role) | self.buffers_of(role)).items()}

    def parameters_of(self, role: str) -> dict[str, nn.Parameter]:
        """The trainable parameters of a role by the names of its method, and `head.*`.

        In a hybrid the name of each part's method stands before the names of its parameters.
        """
        named = self._own_parameters(role)
        if role in self.heads:
            named |= {f"{HEAD}{name}": parameter for name, parameter in self.heads[role].named_parameters()}
        return named

    def buffers_of(self, role: str) -> dict[str, Tensor]:
        """Tensors that belong to the state of a role and are no parameters; whole under every strategy."""
        return {f"{p}{n}": t for p, part in self.attached[role].items() for n, t in part.buffers().items()}

    def rates_of(self, role: str) -> dict[str, float]:
        """The learning rates of parameters that have one of their own."""
        return self._rates[role]

    @contextmanager
    def use(self, role: str) -> Iterator[None]:
        """Be `role`, in the backward pass as well; `BASE` is the base alone."""
        before = self._current
        self._activate(role)
        try:
            yield
        finally:
            self._activate(before)

    @contextmanager
    def side_by_side(self, batches: Mapping[str, Tokens]) -> Iterator[None]:
        """Hidden states of each role's tokens from one pass: inside, `hidden` gives a role its own.

        The backward pass belongs inside too. The roles are plain LoRAs (`can_stand_beside`); their dropout is none.
        """
        if wrong := [role for role in batches if not self.can_stand_beside(role)]:
            raise ValueError(f"{', '.join(wrong)}: only plain LoRA computes side by side")
        pass_over = packed_together if self.packing else padded_together
        try:
            with self.autocast():
                states = pass_over(self._decoder(), batches, self._rows)
            self._together = {role: (ids, states[role]) for role, (ids, _) in batches.items()}
            yield
        finally:
            self._rows.clear()
            self._together = {}

    def can_stand_beside(self, role: str) -> bool:
        """True if the role can compute in one pass with others."""
        parts = self.attached[role].values()
        return all(isinstance(p, PeftAttachment) and all(is_fused(layer) for _, layer in p.layers) for p in parts)

    def autocast(self) -> torch.autocast:
        """The precision of a forward pass."""
        return torch.autocast(self.device.type, self.dtype if self.dtype in HALF else None, self.dtype in HALF)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Last hidden states [B, T, d] of tokens [B, T]; padding (mask 0) may stand on either side."""
        if self._together:
            own, computed = self._together[self._current]
            if own is not ids:
                raise ValueError(f"{self._current}: other tokens than were computed side by side")
            return computed
        before = before_rows(self.attached.get(self._current, {}).values())
        states = packed_states if self.packing else padded_states
        return states(self._decoder(), ids, mask, before)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., d]; give only the positions that count."""
        return scale_logits(self.lm.get_output_embeddings()(hidden), self.lm.config)

    def logprobs(self, hidden: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probability [n] of each label [n] after its hidden state [n, d], in float32 or more."""
        head_trains = self._head_trains
        return chunked_logprobs(self.logits, hidden, labels, temperature, self._loss_chunk, head_trains=head_trains)

    def predictions(self, hidden: Tensor) -> Predictions:
        """The distributions of the tokens after hidden states [n, d], for a loss over the whole vocabulary."""
        return Predictions(hidden, self.logits, self._loss_chunk, self._head_trains)

    def logprobs_and_entropy(self, hidden: Tensor, labels: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """`logprobs`, and the entropy [n] of each distribution. Without gradients."""
        size = self._loss_chunk or max(len(hidden), 1)
        found = []
        for h, y in zip(hidden.detach().split(size), labels.split(size), strict=True):
            logits = self.logits(h)
            found.append((token_logprobs(logits, y, temperature), token_entropy(logits, y, temperature)))
        logprobs, entropies = zip(*found, strict=True)
        return torch.cat(logprobs).detach(), torch.cat(entropies).detach()

    def likeliest(self, hidden: Tensor) -> Tensor:
        """The token [n] that each hidden state [n, d] finds most probable."""
        size = self._loss_chunk or max(len(hidden), 1)
        return torch.cat([self.logits(states).argmax(dim=-1) for states in hidden.split(size)])

    def scores(self, hidden: Tensor) -> Tensor:
        """The active role's scalar at each hidden state: [..., d] -> [...], float32."""
        return self.heads[self._current](hidden)

    def check_prefix(self, method: Method) -> None:
        """UserError where a method has a prefix, and the model's rows are padded because of its layers."""
        prefixes = [part.name for part in parts_of(method) if isinstance(part, WITH_PREFIX)]
        if prefixes and self.padded_because:
            raise UserError(
                f"method.name: {prefixes[0]} stands inside attention, and in a {type(self.lm).__name__} "
                f"{self.padded_because}; allowed: another method, such as lora or prompt_tuning"
            )

    @property
    def _head_trains(self) -> bool:
        return any(parameter.requires_grad for parameter in self.lm.get_output_embeddings().parameters())

    def _decoder(self) -> Any:
        return getattr(self.lm, self.lm.base_model_prefix)

    def _own_parameters(self, role: str) -> dict[str, nn.Parameter]:
        return {f"{p}{n}": t for p, part in self.attached[role].items() for n, t in part.parameters().items()}

    def _own_rates(self, role: str, method: Method) -> dict[str, float]:
        rates = zip(self.attached[role].items(), (getattr(part, "lr", None) for part in parts_of(method)), strict=True)
        return {f"{prefix}{name}": lr for (prefix, part), lr in rates if lr is not None for name in part.parameters()}

    def _roles(self) -> list[str]:
        return sorted(self.trainable)

    def _add_head(self, role: str, head: ScalarHead | ClassHead | None) -> None:
        if head is not None:
            self.heads[role] = head.to(self.device, torch.float64 if self.dtype == torch.float64 else None)

    def _activate(self, role: str) -> None:
        if role != BASE and role not in self.trainable:
            raise KeyError(f"no role {role!r}; there are {self._roles()}")
        self._current = role
        for name, parts in self.attached.items():
            if name != role:
                for part in parts.values():
                    part.activate(False)
        for part in self.attached.get(role, {}).values():
            part.activate(True)

    def _settle_layers(self) -> None:
        """Set how peft's layers compute: without peft's casts, and fused where every part on them is plain LoRA."""
        # Decided again for all layers after every `add`: roles share peft's layer objects, so a role with a variant
        # (DoRA, say) may come onto a layer that was fused for an earlier one, and peft may have wrapped new layers,
        # which have its defaults. Fusing replaces `forward` on the instance, in `__dict__`; taking it out there brings
        # the class's own back.
        parts = [part for parts in self.attached.values() for part in parts.values()]
        special = {layer for p in parts if isinstance(p, PeftAttachment) and not p.plain for _, layer in p.layers}
        layers: list[Any] = [module for module in self.lm.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            # Autocast does the casting; peft's own would copy every activation to float32 first.
            layer.__dict__["cast_input_dtype_enabled"] = self.dtype not in HALF
            layer.__dict__.pop("forward", None)
            fold_experts(layer)
            if layer not in special:
                fuse_lora(layer, self._rows)


def _resident_with(base: PreTrainedModel, device: torch.device) -> int:
    """Memory of a device that is held with the base and nothing else."""
    if device.type == "cpu":
        for tensor in base.state_dict().values():
            tensor.sum()  # weights that are mapped from their file count once they have been read
    return resident_memory(device)
