"""Log-probabilities of prompts on CPU under the adapter of each request, where an adapter changes the output head.

vLLM computes them by one row of logits for each token of a prompt, while its LoRA layers route by one row for each
token that is sampled: the counts differ, and the engine dies; or they are equal by chance, and rows get the adapters of
others.
"""

from typing import Any

from torch import Tensor
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

_stock = GPUModelRunner._get_prompt_logprobs_dict


def prompt_logprobs(self: Any, hidden_states: Tensor, num_scheduled_tokens: dict[str, int]) -> dict[str, Any]:
    """`GPUModelRunner._get_prompt_logprobs_dict`, request by request, each routed to its own adapter."""
    if not self.lora_config or not self.num_prompt_logprobs:
        return _stock(self, hidden_states, num_scheduled_tokens)
    wrappers = self.lora_manager._adapter_manager.punica_wrapper_mapping.values()
    (wrapper,) = {id(wrapper): wrapper for wrapper in wrappers}.values()
    asked: dict[str, int] = self.num_prompt_logprobs
    found: dict[str, Any] = {}
    try:
        for name in [name for name in asked if name in num_scheduled_tokens]:
            self.num_prompt_logprobs = {name: asked[name]}
            with wrapper.logits_of_prompt(int(self.query_start_loc.np[self.input_batch.req_id_to_index[name]])):
                found |= _stock(self, hidden_states, num_scheduled_tokens)
            if not self.num_prompt_logprobs:
                del asked[name]
    finally:
        self.num_prompt_logprobs = asked
    return found


def install() -> None:
    """Put `prompt_logprobs` in the place of vLLM's; may be called any number of times."""
    GPUModelRunner._get_prompt_logprobs_dict = prompt_logprobs
