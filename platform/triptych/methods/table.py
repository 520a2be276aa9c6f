"""The table of methods: what each trains, how it is served, where it comes from."""

from collections.abc import Callable
from dataclasses import dataclass

from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from triptych.methods.lora import apply_lora, lora_config
from triptych.recipe import Lora


@dataclass(frozen=True)
class Method:
    """One parameter-efficient method."""

    trains: str
    merges: bool
    served: str
    paper: str
    learning_rates: tuple[float, float]
    config: Callable[[Lora], LoraConfig]


METHODS: dict[str, Method] = {
    "lora": Method(
        trains="two low-rank matrices beside each linear layer",
        merges=True,
        served="natively by vLLM, many adapters in one batch",
        paper="Hu et al. 2021, arXiv 2106.09685",
        learning_rates=(5e-5, 1e-3),
        config=lora_config,
    ),
}


def method_config(method: Lora) -> LoraConfig:
    """peft's configuration of a recipe's method."""
    return METHODS[method.name].config(method)


def apply_method(model: PreTrainedModel | PeftModel, method: Lora, adapter: str) -> PeftModel:
    """Add the method's parameters to `model` under the name `adapter`."""
    return apply_lora(model, method_config(method), adapter)
