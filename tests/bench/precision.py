"""Precision of all arms of a benchmark: bfloat16, or float32 on a processor that would emulate it."""

from triptych.plan.processor import cpu_flags, emulates_bfloat16

DTYPE = "float32" if emulates_bfloat16(cpu_flags()) else "bfloat16"
