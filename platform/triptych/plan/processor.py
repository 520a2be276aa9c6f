"""This machine's processor: its name, and whether it has instructions for bfloat16."""

import platform
from collections.abc import Collection
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor(cpuinfo: Path = CPUINFO) -> str:
    """Name of the processor; one of the same name that emulates bfloat16 has another, as it has other speeds."""
    name = _first_core(cpuinfo).get("model name", platform.processor() or platform.machine())
    return f"{name}, bfloat16 emulated" if emulates_bfloat16(cpu_flags(cpuinfo)) else name


def cpu_flags(cpuinfo: Path = CPUINFO) -> set[str]:
    """Instruction-set flags of the first core; empty on ARM and outside of Linux, where the kernel lists none."""
    return set(_first_core(cpuinfo).get("flags", "").split())


def emulates_bfloat16(flags: Collection[str]) -> bool:
    """Whether a processor with these flags has no instructions for bfloat16; False where no flags are known."""
    return bool(flags) and not {"avx512_bf16", "amx_bf16"} & set(flags)


def _first_core(cpuinfo: Path) -> dict[str, str]:
    try:
        lines = cpuinfo.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    parts = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in parts}
