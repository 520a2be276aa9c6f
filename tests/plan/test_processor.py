"""What a processor is called, and whether it has instructions for bfloat16."""

from pathlib import Path

import pytest

from triptych.plan.processor import cpu_flags, emulates_bfloat16, processor


def cpuinfo(folder: Path, flags: str) -> Path:
    file = folder / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: other\n")
    return file


def test_the_flags_are_those_of_the_first_core(tmp_path: Path) -> None:
    assert cpu_flags(cpuinfo(tmp_path, "fpu avx2")) == {"fpu", "avx2"}


@pytest.mark.parametrize(
    ("flags", "emulated"),
    [("avx2", True), ("avx2 avx512f", True), ("avx512f avx512_bf16", False), ("amx_bf16", False), ("", False)],
)
def test_which_processors_emulate_bfloat16(flags: str, emulated: bool) -> None:
    assert emulates_bfloat16(flags.split()) is emulated


def test_two_processors_of_one_name_keep_their_speeds_apart(tmp_path: Path) -> None:
    old, new = processor(cpuinfo(tmp_path, "avx2")), processor(cpuinfo(tmp_path, "avx512_bf16"))
    assert new == "AMD EPYC"
    assert old != new


def test_a_machine_that_lists_nothing_has_a_name(tmp_path: Path) -> None:
    assert processor(tmp_path / "none")
    assert cpu_flags(tmp_path / "none") == set()
