"""Plugin for vLLM: a correct and faster LoRA path on CPU."""


def register() -> None:
    """Called by vLLM in every process that it starts."""
