"""Methods that peft computes: each wraps the layers that it changes.

peft's own way to switch adapters flips `requires_grad`; here a layer is only told which adapter it computes with.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import peft
import torch
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import transformers_weight_conversion
from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.errors import UserError
from triptych.methods.base import Attachment, Export
from triptych.methods.targets import named_norms, targeted
from triptych.models.peft_files import PREFIX
from triptych.recipe.matrix import C3a, Ia3, LnTuning

_ALL_LAYERS = ("vera_A", "vera_B", "randlora_A", "randlora_B", "vblora_vector_bank")
"""Tensors that all layers share; peft's files hold them once."""
_FIXED = (*_ALL_LAYERS[:4], "shira_indices")
"""Tensors that are never trained but are part of the files."""
_CONFIGS = {
    "ia3": "IA3Config",
    "vera": "VeraConfig",
    "loha": "LoHaConfig",
    "lokr": "LoKrConfig",
    "oft": "OFTConfig",
    "boft": "BOFTConfig",
    "hra": "HRAConfig",
    "miss": "MissConfig",
    "fourierft": "FourierFTConfig",
    "randlora": "RandLoraConfig",
    "vblora": "VBLoRAConfig",
    "shira": "ShiraConfig",
    "c3a": "C3AConfig",
    "ln_tuning": "LNTuningConfig",
}
_RENAMED = {
    "ia3": {"feedforward": "feedforward_modules"},
    "vera": {"dropout": "vera_dropout"},
    "miss": {"dropout": "miss_dropout"},
    "randlora": {"alpha": "randlora_alpha", "dropout": "randlora_dropout"},
    "vblora": {"dropout": "vblora_dropout"},
}
"""Fields that peft calls otherwise."""


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
        """Trained parameters, by the names of their files."""
        return {name: tensor for name, tensor in self._tensors() if isinstance(tensor, nn.Parameter)}

    def buffers(self) -> dict[str, Tensor]:
        """Tensors of the state that are not trained."""
        return {name: tensor for name, tensor in self._tensors() if not isinstance(tensor, nn.Parameter)}

    def activate(self, on: bool) -> None:
        """Be a part of the model, or not."""
        for _, layer in self.layers:
            layer._disable_adapters = not on
            if on:
                layer._active_adapter = self._adapters

    def remove(self) -> None:
        """Take the adapters out of their layers, which stay wrapped."""
        for _, layer in self.layers:
            for adapter in self._adapters:
                flags = {parameter: parameter.requires_grad for parameter in layer.parameters()}
                layer.delete_adapter(adapter)
                for parameter, trains in flags.items():  # peft trains another adapter from now on
                    parameter.requires_grad_(trains)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, layer in self.layers:
            for kind in (*layer.adapter_layer_names, *_FIXED):
                place = "base_model." if kind in _ALL_LAYERS else f"{PREFIX}{name}."
                for own, tensor in tensors_of(getattr(layer, kind, None), self._adapters[0]):
                    # peft's files have DoRA's vectors without the name of the parameter.
                    yield f"{place}{kind}{own if kind != 'lora_magnitude_vector' else ''}", tensor


def attach(model: PreTrainedModel, method: Any, role: str) -> PeftAttachment:
    """peft's adapter in every targeted layer.

    Raises:
        UserError: the targets match no module of the model, or the method does not fit their shapes.
    """
    config = peft_config(method)
    config.target_modules = names = _targeted(model, method)
    if isinstance(method, Ia3):
        feedforward = tuple(f".{ending}" for ending in method.feedforward)
        config.feedforward_modules = [name for name in names if f".{name}".endswith(feedforward)]
    try:
        layers = inject(model, config, role)
    except (TypeError, ValueError) as error:
        raise UserError(f"method.name: {method.name} does not fit this model: {error}") from error
    if isinstance(method, C3a):
        for _, layer in layers:
            # peft adds to the frozen layer's output in place, which selective checkpointing may be keeping.
            layer.get_base_layer().register_forward_hook(lambda _, __, output: output.clone())
    return PeftAttachment(layers, [role])


def export(method: Any, state: Mapping[str, Tensor]) -> Export:
    """peft's files."""
    config = peft_config(method)
    if getattr(method, "layers", None) is not None:
        config.target_modules = modules_of(state)
    return Export(method, dict(state), config)


def peft_config(method: Any) -> Any:
    """peft's configuration of a recipe's method."""
    renamed = _RENAMED.get(method.name, {})
    own = method.model_dump(exclude={"name", "lr", "targets", "layers"})
    values = {
        renamed.get(name, name): list(value) if isinstance(value, tuple) else value for name, value in own.items()
    }
    targets = method.targets if isinstance(method.targets, str) else list(method.targets)
    values |= {"init_weights": True} if method.name in ("fourierft", "c3a") else {}  # starts as the base alone
    return getattr(peft, _CONFIGS[method.name])(target_modules=targets, task_type="CAUSAL_LM", **values)


def modules_of(weights: Iterable[str]) -> list[str]:
    """Names of the modules that the tensors of peft's files belong to."""
    kinds = "lora|vera|hada|lokr|oft|boft|hra|miss|fourierft|randlora|vblora|c3a"
    found = (re.fullmatch(rf"{re.escape(PREFIX)}(.+?)\.({kinds})_.*", name) for name in weights)
    return list(dict.fromkeys(match[1] for match in found if match))


def inject(model: PreTrainedModel, config: PeftConfig, adapter: str) -> list[tuple[str, Any]]:
    """Let peft add an adapter, in float32, or in float64 to a base in float64; the layers that have it, by name."""
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[PeftType(config.peft_type)]
    model.__dict__.pop("peft_config", None)  # of other adapters, which are none of this tuner's business
    # peft would read names of shared experts as those of all experts, which older versions of transformers had apart.
    as_named = patch.object(
        transformers_weight_conversion, "convert_peft_config_for_transformers", lambda *_, **__: None
    )
    kept = LoraLayer if tuner.tuner_layer_cls is LoraLayer else None
    with _unwrapped(model, kept), as_named, warnings.catch_warnings():
        # Patterns that match nothing are refused before; peft overlooks those that match parameters of experts.
        warnings.filterwarnings("ignore", message=r".*_pattern keys did not match any targeted module")
        tuner(model, config, adapter)
    return _layers_with(model, tuner.tuner_layer_cls, adapter)


def _layers_with(model: PreTrainedModel, kind: type[BaseTunerLayer], adapter: str) -> list[tuple[str, Any]]:
    """The layers that have an adapter, which becomes float32, or float64; by name."""
    found = []
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    for name, layer in model.named_modules():
        if not isinstance(layer, kind):
            continue
        own = [t for part in layer.adapter_layer_names for _, t in tensors_of(getattr(layer, part, None), adapter)]
        for tensor in own:
            tensor.data = tensor.data.to(dtype)
        if own:
            found.append((_own_name(name, layer), layer))
    return found


def _own_name(name: str, layer: Any) -> str:
    """A layer's name in the model as it was loaded; of experts, peft's path and the parameter that it wraps."""
    return f"{name}.{layer.parameter_name}" if isinstance(layer, ParamWrapper) else name.replace(".base_layer", "")


def tensors_of(container: Any, adapter: str) -> Iterator[tuple[str, Tensor]]:
    """An adapter's tensors in one of a layer's containers: the rest of the name in peft's files, and the tensor."""
    if container is None or adapter not in container:
        return
    held = container[adapter]
    if isinstance(held, Tensor):
        yield "", held
        return
    for name, tensor in held.state_dict(keep_vars=True).items():
        yield f".{name}", tensor


def fix(module: nn.Module) -> None:
    """Make buffers of a module's parameters: they are never trained, and every rank keeps them whole."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        delattr(module, name)
        module.register_buffer(name, parameter.detach())


def _targeted(model: PreTrainedModel, method: Any) -> list[str]:
    if isinstance(method, LnTuning):
        return named_norms(model, method.targets)
    return targeted(model, method.targets, getattr(method, "layers", None))


@contextmanager
def _unwrapped(model: nn.Module, kept: type[BaseTunerLayer] | None) -> Iterator[None]:
    """Layers as a tuner expects them, without other wrappers than those of a kind, which come back around its own.

    So roles never share a layer of peft, whose settings may be one for all of its adapters; but plain LoRA's do.
    """
    held: list[tuple[nn.Module, str, list[Any]]] = []
    for parent in [module for module in model.modules() if not isinstance(module, BaseTunerLayer)]:
        for name, child in list(parent.named_children()):
            wrappers: list[Any] = []
            inner: Any = child
            while isinstance(inner, BaseTunerLayer) and not (kept and isinstance(inner, kept)):
                wrappers.append(inner)
                inner = wrappers[-1].base_layer
            if wrappers:
                setattr(parent, name, inner)
                held.append((parent, name, wrappers))
    try:
        yield
    finally:
        for parent, name, wrappers in held:
            wrappers[-1].base_layer = getattr(parent, name)
            setattr(parent, name, wrappers[0])
