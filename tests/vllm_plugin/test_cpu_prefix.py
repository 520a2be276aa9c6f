"""The default of prefix caching on CPU: for attention alone."""

from types import SimpleNamespace

import pytest
from vllm.config import ModelConfig

from triptych.vllm_plugin import cpu_prefix

CASES = [(False, False, True), (True, False, False), (False, True, False)]


@pytest.mark.parametrize(("hybrid", "free", "cached"), CASES)
def test_models_with_states_have_no_prefix_cache(
    hybrid: bool, free: bool, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelConfig, "is_prefix_caching_supported", ModelConfig.is_prefix_caching_supported)
    monkeypatch.setattr(cpu_prefix, "_stock", property(lambda config: True))
    cpu_prefix.install()
    config = SimpleNamespace(is_hybrid=hybrid, is_attention_free=free)
    supported = vars(ModelConfig)["is_prefix_caching_supported"]
    assert supported.fget(config) is cached
