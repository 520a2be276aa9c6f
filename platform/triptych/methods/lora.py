"""LoRA through peft: W x + (alpha / r) B A x, with B = 0 at the start (Hu et al. 2021, arXiv 2106.09685)."""

from collections.abc import Mapping

from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel

from triptych.methods.base import Export
from triptych.methods.peft_family import PeftAttachment, inject
from triptych.methods.targets import targeted
from triptych.recipe.method import Lora


def lora_config(method: Lora) -> LoraConfig:
    """peft's configuration of a recipe's method."""
    return LoraConfig(
        r=method.r,
        lora_alpha=exact(method.alpha),
        lora_dropout=method.dropout,
        target_modules=method.targets if isinstance(method.targets, str) else list(method.targets),
        use_rslora=method.rslora,
        task_type="CAUSAL_LM",
    )


def exact(alpha: float) -> int:
    """peft types alpha as int, takes a float, and vLLM wants what the JSON says to be exact."""
    return int(alpha) if float(alpha).is_integer() else alpha  # type: ignore[return-value]


def attach(model: PreTrainedModel, method: Lora, role: str) -> PeftAttachment:
    """An adapter in every targeted layer.

    Raises:
        UserError: the targets match no module of the model.
    """
    config = lora_config(method)
    config.target_modules = targeted(model, method.targets)
    return PeftAttachment(inject(model, config, role), [role], plain=True)


def export(method: Lora, state: Mapping[str, Tensor]) -> Export:
    """peft's LoRA files."""
    return Export(method, dict(state), lora_config(method))
