"""LoRA through peft: W x + (alpha / r) B A x, with B = 0 at the start (Hu et al. 2021, arXiv 2106.09685)."""

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from triptych.errors import UserError
from triptych.recipe import Lora


def lora_config(method: Lora) -> LoraConfig:
    """peft's configuration of a recipe's method."""
    return LoraConfig(
        r=method.r,
        # peft types alpha as int, takes a float, and vLLM wants what the JSON says to be exact.
        lora_alpha=int(method.alpha) if float(method.alpha).is_integer() else method.alpha,  # type: ignore[arg-type]
        lora_dropout=method.dropout,
        target_modules=method.targets if isinstance(method.targets, str) else list(method.targets),
        use_rslora=method.rslora,
        task_type="CAUSAL_LM",
    )


def apply_lora(model: PreTrainedModel | PeftModel, config: LoraConfig, adapter: str) -> PeftModel:
    """Add one more adapter, in float32, to a base (or to a base that has some already).

    Raises:
        UserError: the targets match no module of the model.
    """
    try:
        if isinstance(model, PeftModel):
            model.add_adapter(adapter, config)
            return model
        return get_peft_model(model, config, adapter_name=adapter)
    except ValueError as error:
        raise UserError(f"method.targets: {config.target_modules} does not fit this model: {error}") from error
