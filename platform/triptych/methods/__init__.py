"""Parameter-efficient methods: one table of them all, and one way to apply them."""

from triptych.methods.lora import apply_lora
from triptych.methods.table import METHODS, Method, apply_method, method_config

__all__ = ["METHODS", "Method", "apply_lora", "apply_method", "method_config"]
