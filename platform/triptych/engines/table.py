"""The table of engine classes by name."""

from triptych.engines.base import Engine
from triptych.engines.vllm import VllmEngine

ENGINES: dict[str, type[Engine]] = {"vllm": VllmEngine}
