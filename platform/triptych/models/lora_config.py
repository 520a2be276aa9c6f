"""Fields of a LoRA's configuration that change what it computes, and that other readers overlook in silence."""

from collections.abc import Mapping
from typing import Any

from peft import LoraConfig

from triptych.errors import UserError
from triptych.models.peft_files import ADAPTER_CONFIG

_READ = frozenset(
    [
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "target_parameters",
        "use_rslora",
        "use_dora",
        "rank_pattern",
        "alpha_pattern",
        "init_lora_weights",
        "layers_to_transform",
        "layers_pattern",
        "exclude_modules",
    ]
)
"""Fields that are understood wherever a LoRA is loaded, or refused there by name."""
_IDLE = frozenset(
    [
        "peft_type",
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "fan_in_fan_out",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
    ]
)
"""Fields that change nothing of what the tensors mean."""
IN_BASE = ("pissa", "olora")
"""Starts that move a part of the base's weights into the adapter, a part that can be computed again."""
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Starts that leave the base as it is."""


def check_lora_config(config: Mapping[str, Any]) -> None:
    """Refuse a LoRA that is more, or for another base, than its factors say.

    vLLM reads the fields that it knows and overlooks the rest: tokens from which an adapter is active, layers that are
    repeated, a start whose adapter holds a part of the base.

    Raises:
        UserError: the field, its value, and what is allowed.
    """
    default = LoraConfig().to_dict()
    for key, value in config.items():
        if key not in _READ | _IDLE and value != default.get(key) and value not in (None, False, [], {}):
            allowed = "none" if default.get(key) in (None, [], {}) else default.get(key)
            raise UserError(f"{ADAPTER_CONFIG}: {key} {value} is not computed here; allowed: {allowed}")
    start = config.get("init_lora_weights", True)
    if start not in _STARTS:
        raise UserError(
            f"{ADAPTER_CONFIG}: init_lora_weights {start} moved a part of the base's weights into the adapter, and the "
            "base here has it still; allowed: what peft saves as a plain LoRA "
            "(path_initial_model_for_weight_conversion), or pissa and olora where the base is here"
        )
