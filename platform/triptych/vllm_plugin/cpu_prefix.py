"""No prefix cache on CPU for models with layers that keep a state: vLLM's CPU scans give no states of within a prompt.

What vLLM would keep for a beginning is then the state at the end of a prompt, perhaps another's; or it finds none and
ends with an IndexError.
"""

from typing import Any

from vllm.config import ModelConfig

_stock: Any = ModelConfig.is_prefix_caching_supported


def _supported(config: ModelConfig) -> bool:
    """`ModelConfig.is_prefix_caching_supported`, the default of an engine's `enable_prefix_caching`."""
    return not (config.is_hybrid or config.is_attention_free) and bool(_stock.fget(config))


def install() -> None:
    """Put `_supported` in the place of vLLM's; may be called any number of times."""
    ModelConfig.is_prefix_caching_supported = property(_supported)
