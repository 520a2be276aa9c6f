"""Methods that peft computes: each wraps the layers that it changes.

peft's own way to switch adapters flips `requires_grad`; here a layer is only told which adapter it computes with.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.methods.base import Attachment

PREFIX = "base_model.model."
"""Before the names of a model's modules, in peft's files."""


class PeftAttachment(Attachment):
    """One of peft's adapters in the layers that have it; several roles may have adapters in one layer."""

    def __init__(self, layers: Sequence[tuple[str, Any]], adapters: Sequence[str], *, plain: bool = False) -> None:
        """`adapters`: peft's names of those that compute together; the first is the role, whose files these are.

        `plain`: one adapter of low rank, W x + s B A x, that may be computed in any way which gives the same.
        """
        self.layers = list(layers)
        self.plain = plain
        self._adapters = list(adapters)

    def parameters(self) -> dict[str, nn.Parameter]:
        """See Attachment."""
        return {name: tensor for name, tensor in self._tensors() if isinstance(tensor, nn.Parameter)}

    def buffers(self) -> dict[str, Tensor]:
        """See Attachment."""
        return {name: tensor for name, tensor in self._tensors() if not isinstance(tensor, nn.Parameter)}

    def activate(self, on: bool) -> None:
        """See Attachment."""
        for _, layer in self.layers:
            layer._disable_adapters = not on
            if on:
                layer._active_adapter = self._adapters

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, layer in self.layers:
            for kind in layer.adapter_layer_names:
                for own, tensor in tensors_of(getattr(layer, kind, None), self._adapters[0]):
                    # peft's files have DoRA's vectors without the name of the parameter.
                    yield f"{PREFIX}{name}.{kind}{own if kind != 'lora_magnitude_vector' else ''}", tensor


def inject(model: PreTrainedModel, config: PeftConfig, adapter: str) -> list[tuple[str, Any]]:
    """Let peft add an adapter, in float32, or in float64 to a base in float64; the layers that have it, by name."""
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[PeftType(config.peft_type)]
    model.__dict__.pop("peft_config", None)  # of other adapters, which are none of this tuner's business
    tuner(model, config, adapter)
    found = []
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    for name, layer in model.named_modules():
        if not isinstance(layer, tuner.tuner_layer_cls):
            continue
        own = [t for kind in layer.adapter_layer_names for _, t in tensors_of(getattr(layer, kind, None), adapter)]
        for tensor in own:
            tensor.data = tensor.data.to(dtype)
        if own:
            found.append((name.replace(".base_layer", ""), layer))
    return found


def tensors_of(container: Any, adapter: str) -> Iterator[tuple[str, Tensor]]:
    """What one of a layer's containers has of an adapter: the rest of its name in peft's files, and the tensor."""
    if container is None or adapter not in container:
        return
    held = container[adapter]
    if isinstance(held, Tensor):
        yield "", held
        return
    for name, tensor in (*held.named_parameters(), *held.named_buffers()):
        yield f".{name}", tensor


def fix(module: nn.Module) -> None:
    """Make buffers of a module's parameters: they are never trained, and every rank keeps them whole."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        delattr(module, name)
        module.register_buffer(name, parameter.detach())
