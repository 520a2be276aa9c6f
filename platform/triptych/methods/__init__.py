"""Parameter-efficient methods: one table of them all, and one way to apply them."""

from triptych.methods.lora import apply_lora, lora_config
from triptych.methods.table import METHODS, Method, apply_method

__all__ = ["METHODS", "Method", "apply_lora", "apply_method", "lora_config"]
