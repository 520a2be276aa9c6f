"""Roles: policy, reference, critic, reward are adapters and heads on one base.

A role is switched by changing the active adapter. `requires_grad` is set once, when a role is added, and never flips.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.errors import UserError
from triptych.methods import apply_lora
from triptych.models.heads import ClassHead, ScalarHead
from triptych.models.logits import scale_logits
from triptych.objectives.language import chunked_logprobs, token_entropy, token_logprobs
from triptych.train.attention import PACKED, lay_out
from triptych.train.checkpointing import Checkpointing, checkpoint_blocks
from triptych.train.fused_lora import fuse_lora

T = TypeVar("T")

BASE = "base"
"""The role without any adapter."""

HEAD = "head."
"""Before the names of a head's parameters, among those of its role."""

HALF = (torch.bfloat16, torch.float16)


class RoleModel(nn.Module):
    """One causal language model and the roles on it.

    Everything trainable is float32, or float64 on a float64 base; `dtype` is what is computed in, by autocast.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        dtype: torch.dtype | None = None,
        *,
        packing: bool = True,
        checkpointing: Checkpointing = "none",
        loss_chunk: int | None = 512,
    ) -> None:
        """`dtype` None: the base's. Packing is for models whose attention can be replaced; others pad.

        `loss_chunk`: tokens whose logits exist at once.
        """
        super().__init__()
        base.requires_grad_(False)
        self.lm: PreTrainedModel | PeftModel = base
        self.heads = nn.ModuleDict()
        self.trainable: dict[str, bool] = {}
        self.dtype = dtype or base.dtype
        self.packing = packing and base._supports_attention_backend
        self._base = base
        self._current = BASE
        self._full: str | None = None
        self._loss_chunk = loss_chunk
        if self.packing:
            base.set_attn_implementation(PACKED)
        self._checkpointed = checkpoint_blocks(self.blocks(), checkpointing)

    @property
    def device(self) -> torch.device:
        return self._base.device

    @property
    def hidden_size(self) -> int:
        return int(self._base.config.hidden_size)

    def blocks(self) -> list[nn.Module]:
        """The decoder's layers: the units that are sharded and checkpointed."""
        return list(self._decoder().layers)

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
        config: LoraConfig,
        *,
        trainable: bool,
        weights: Mapping[str, Tensor] | None = None,
        head: ScalarHead | ClassHead | None = None,
    ) -> None:
        """Add an adapter, new or from `weights` (peft's names), with a scalar head for a role that scores."""
        self.lm = apply_lora(self.lm, config, role)
        if weights is not None:
            self.load_adapter(role, weights)
        self.trainable[role] = trainable
        for name, parameter in self.lm.named_parameters():
            parameter.requires_grad_(self.trainable.get(_adapter_of(name), False))
        self._add_head(role, head, trainable)
        for layer in self._layers():
            # Autocast does the casting; peft's own would copy every activation to float32 first.
            layer.__dict__["cast_input_dtype_enabled"] = self.dtype not in HALF
            fuse_lora(layer)
        self._activate(self._current)

    def add_full(self, role: str, *, head: ScalarHead | ClassHead | None = None) -> None:
        """Train every weight of the base itself, as the only role on it."""
        if self.trainable:
            raise ValueError(f"a role that trains the whole base has it for itself; there are {sorted(self.trainable)}")
        if self._base.dtype in HALF:
            self._base.float()
        self._base.requires_grad_(True)
        self._full = role
        self.trainable[role] = True
        self._add_head(role, head, True)

    def load_adapter(self, role: str, weights: Mapping[str, Tensor]) -> None:
        """Replace a role's adapter; every tensor must be there, and no other."""
        expected = set(self.adapter(role))
        if expected != set(weights):
            odd = sorted(expected ^ set(weights))[:3]
            raise UserError(f"adapter of role {role}: its tensors are not those of this model and method, e.g. {odd}")
        set_peft_model_state_dict(self.lm, dict(weights), adapter_name=role)

    def adapter(self, role: str) -> dict[str, Tensor]:
        """The role's adapter under peft's names, detached, in its own dtype."""
        state: dict[str, Any] = get_peft_model_state_dict(self.lm, adapter_name=role, save_embedding_layers=False)
        return {name: tensor.detach() for name, tensor in state.items()}

    def parameters_of(self, role: str) -> dict[str, nn.Parameter]:
        """The trainable parameters of a role: peft's names or, if it trains all, the base's; and `head.*`."""
        if role == self._full:
            named = dict(self._base.named_parameters())
        else:
            named = {
                name.replace(f".{role}.", "."): parameter
                for name, parameter in self.lm.named_parameters()
                if _adapter_of(name) == role
            }
        if role in self.heads:
            named |= {f"{HEAD}{name}": parameter for name, parameter in self.heads[role].named_parameters()}
        return named

    @contextmanager
    def use(self, role: str) -> Iterator[None]:
        """Be `role`, in the backward pass as well; `BASE` is the base alone."""
        before = self._current
        self._activate(role)
        try:
            yield
        finally:
            self._activate(before)

    def autocast(self) -> torch.autocast:
        """The precision of a forward pass."""
        return torch.autocast(self.device.type, self.dtype if self.dtype in HALF else None, self.dtype in HALF)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Last hidden states [B, T, d] of tokens [B, T]; padding (mask 0) may stand on either side."""
        if not self.packing:
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            output = self._decoder()(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
            return output.last_hidden_state
        layout = lay_out(ids, mask)
        output = self._decoder()(
            input_ids=layout.ids[None], position_ids=layout.positions[None], use_cache=False, layout=layout
        )
        packed = output.last_hidden_state[0]
        padded = packed.new_zeros(ids.numel(), packed.shape[1])
        real = mask.flatten().nonzero()[:, 0]
        return padded.index_copy(0, real, packed[layout.places]).view(*ids.shape, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., d]; give only the positions that count."""
        return scale_logits(self._base.get_output_embeddings()(hidden), self._base.config)

    def logprobs(self, hidden: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probability [n] of each label [n] after its hidden state [n, d], in float32 or more."""
        head_trains = any(parameter.requires_grad for parameter in self._base.get_output_embeddings().parameters())
        return chunked_logprobs(self.logits, hidden, labels, temperature, self._loss_chunk, head_trains=head_trains)

    def logprobs_and_entropy(self, hidden: Tensor, labels: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """`logprobs`, and the entropy [n] of each distribution. Without gradients."""
        size = self._loss_chunk or max(len(hidden), 1)
        found = []
        for h, y in zip(hidden.detach().split(size), labels.split(size), strict=True):
            logits = self.logits(h)
            found.append((token_logprobs(logits, y, temperature), token_entropy(logits, y, temperature)))
        logprobs, entropies = zip(*found, strict=True)
        return torch.cat(logprobs).detach(), torch.cat(entropies).detach()

    def scores(self, hidden: Tensor) -> Tensor:
        """The active role's scalar at each hidden state: [..., d] -> [...], float32."""
        return self.heads[self._current](hidden)

    def _decoder(self) -> Any:
        return getattr(self._base, self._base.base_model_prefix)

    def _add_head(self, role: str, head: ScalarHead | ClassHead | None, trainable: bool) -> None:
        if head is not None:
            self.heads[role] = head.to(self.device, torch.float64 if self.dtype == torch.float64 else None)
            head.requires_grad_(trainable)

    def _activate(self, role: str) -> None:
        if role != BASE and role not in self.trainable:
            raise KeyError(f"no role {role!r}; there are {sorted(self.trainable)}")
        self._current = role
        for layer in self._layers():
            layer._disable_adapters = role == BASE
            if role != BASE:
                layer._active_adapter = [role]

    def _layers(self) -> list[Any]:
        return [module for module in self.lm.modules() if isinstance(module, BaseTunerLayer)]


def _adapter_of(parameter: str) -> str:
    """`...lora_A.policy.weight` -> `policy`; empty for the base's own parameters."""
    parts = parameter.split(".")
    return parts[-2] if len(parts) > 2 and parts[-3].startswith("lora_") else ""
