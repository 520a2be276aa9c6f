"""Plugin for vLLM on CPU: a correct and faster LoRA path, correct rotary positions and no wrong states.

vLLM calls `register` in every process that it starts (entry point group `vllm.general_plugins`; VLLM_PLUGINS="" turns
it off). The hooks are the name of the class that the CPU platform answers with in `get_punica_wrapper`,
`RotaryEmbedding.forward_cpu`, `ModelConfig.is_prefix_caching_supported` and
`GPUModelRunner._get_prompt_logprobs_dict`. On any other platform, and with any version of vLLM that this was not
checked against, vLLM stays as it is.
"""

import logging

CHECKED_VERSION = "0.32.0"

# A child of vLLM's own logger: that one has a handler in all of its processes.
_logger = logging.getLogger("vllm.triptych")


def register() -> None:
    """Make vLLM's CPU platform use `GroupedLoRAWrapper`; may be called any number of times."""
    import vllm
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    if vllm.__version__ != CHECKED_VERSION:
        _logger.warning(
            "triptych_cpu_lora was checked against vLLM %s and this is %s: left off. vLLM's own LoRA path on CPU is "
            "slow, and answers without an adapter are wrong when all adapter slots are taken.",
            CHECKED_VERSION,
            vllm.__version__,
        )
        return
    from triptych.vllm_plugin import cpu_prefix, cpu_prompt_logprobs, cpu_rotary

    cpu_rotary.install()
    cpu_prefix.install()
    cpu_prompt_logprobs.install()
    type(current_platform).get_punica_wrapper = staticmethod(lambda: "triptych.vllm_plugin.cpu_lora.GroupedLoRAWrapper")
