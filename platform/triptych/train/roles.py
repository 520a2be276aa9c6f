"""Roles: policy, reference, critic, reward are adapters and heads on one frozen base.

A role is switched by changing the active adapter. `requires_grad` is set once, when a role is added, and never flips.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.errors import UserError
from triptych.methods import apply_lora
from triptych.models.heads import ScalarHead

BASE = "base"
"""The role without any adapter."""


class RoleModel(nn.Module):
    """One frozen causal language model and the roles on it.

    Computation runs in the base's dtype (by autocast where that is bfloat16); adapters and heads are float32, or
    float64 on a float64 base.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        base.requires_grad_(False)
        self.lm: PreTrainedModel | PeftModel = base
        self.heads = nn.ModuleDict()
        self.trainable: dict[str, bool] = {}
        self._base = base
        self._current = BASE

    @property
    def device(self) -> torch.device:
        return self._base.device

    @property
    def hidden_size(self) -> int:
        return int(self._base.config.hidden_size)

    def add(
        self,
        role: str,
        config: LoraConfig,
        *,
        trainable: bool,
        weights: Mapping[str, Tensor] | None = None,
        head: ScalarHead | None = None,
    ) -> None:
        """Add an adapter, new or from `weights` (peft's names), with a scalar head for a role that scores."""
        self.lm = apply_lora(self.lm, config, role)
        if weights is not None:
            self.load_adapter(role, weights)
        if head is not None:
            self.heads[role] = head.to(self.device, torch.float64 if self._base.dtype == torch.float64 else None)
        self.trainable[role] = trainable
        for name, parameter in self.lm.named_parameters():
            parameter.requires_grad_(self.trainable.get(_adapter_of(name), False))
        if head is not None:
            head.requires_grad_(trainable)
        for layer in self._layers():
            # Autocast does the casting; peft's own would copy every activation to float32 first.
            layer.__dict__["cast_input_dtype_enabled"] = self._base.dtype != torch.bfloat16
        self._activate(self._current)

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
        """The trainable parameters of a role: peft's names, and `head.*`."""
        named = {
            name.replace(f".{role}.", "."): parameter
            for name, parameter in self.lm.named_parameters()
            if _adapter_of(name) == role
        }
        if role in self.heads:
            named |= {f"head.{name}": parameter for name, parameter in self.heads[role].named_parameters()}
        return named

    @contextmanager
    def use(self, role: str) -> Iterator[None]:
        """Run as `role`; `BASE` is the base alone."""
        before = self._current
        self._activate(role)
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._base.dtype == torch.bfloat16):
                yield
        finally:
            self._activate(before)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Last hidden states [B, T, d] of tokens [B, T]; padding (mask 0) may stand on either side."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        decoder = getattr(self._base, self._base.base_model_prefix)
        output = decoder(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        return output.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., d]; give only the positions that count."""
        return self._base.get_output_embeddings()(hidden)

    def scores(self, hidden: Tensor) -> Tensor:
        """The active role's scalar at each hidden state: [..., d] -> [...], float32."""
        return self.heads[self._current](hidden)

    def _activate(self, role: str) -> None:
        if role != BASE and role not in self.trainable:
            raise KeyError(f"no role {role!r}; there are {sorted(self.trainable)}")
        self._current = role
        for layer in self._layers():
            layer._disable_adapters = role == BASE
            if role != BASE:
                layer._active_adapter = [role]

    def _layers(self) -> list[BaseTunerLayer]:
        return [module for module in self.lm.modules() if isinstance(module, BaseTunerLayer)]


def _adapter_of(parameter: str) -> str:
    """`...lora_A.policy.weight` -> `policy`; empty for the base's own parameters."""
    parts = parameter.split(".")
    return parts[-2] if len(parts) > 2 and parts[-3].startswith("lora_") else ""
