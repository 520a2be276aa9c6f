"""The plugin takes effect where it was checked, and nowhere else."""

import logging

import pytest
import vllm
import vllm.platforms
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.interface import UnspecifiedPlatform

from triptych.vllm_plugin import CHECKED_VERSION, register

STOCK = "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"


@pytest.fixture(autouse=True)
def _stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before: as vLLM comes, on CPU. After: as it was."""
    monkeypatch.setattr(CpuPlatform, "get_punica_wrapper", staticmethod(lambda: STOCK))
    monkeypatch.setattr(vllm.platforms, "current_platform", CpuPlatform())


@pytest.mark.slow
def test_on_cpu_with_the_checked_version() -> None:
    register()
    register()
    name = CpuPlatform().get_punica_wrapper()
    from vllm.utils.import_utils import resolve_obj_by_qualname

    assert resolve_obj_by_qualname(name).__module__ == "triptych.vllm_plugin.cpu_lora"


def test_another_version_is_left_alone_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    logger = logging.getLogger("vllm.triptych")
    logger.addHandler(handler)
    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    try:
        register()
    finally:
        logger.removeHandler(handler)
    assert CpuPlatform().get_punica_wrapper() == STOCK
    (record,) = records
    assert record.levelno == logging.WARNING
    assert CHECKED_VERSION in record.getMessage()
    assert "0.99.0" in record.getMessage()


def test_another_platform_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm.platforms, "current_platform", UnspecifiedPlatform())
    stock = UnspecifiedPlatform.get_punica_wrapper
    register()
    assert UnspecifiedPlatform.get_punica_wrapper == stock
    assert CpuPlatform().get_punica_wrapper() == STOCK
