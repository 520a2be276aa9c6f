"""Amounts of memory, each with its interval."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce


@dataclass(frozen=True)
class Bytes:
    """An amount of memory with its interval."""

    low: int
    expected: int
    high: int

    @classmethod
    def exactly(cls, amount: int) -> "Bytes":
        """An amount without uncertainty."""
        return cls(amount, amount, amount)

    @classmethod
    def scaled(cls, amount: float, factors: tuple[float, float, float]) -> "Bytes":
        """The amount times a low, an expected and a high factor."""
        low, expected, high = (int(amount * factor) for factor in factors)
        return cls(low, expected, high)

    def __add__(self, other: "Bytes") -> "Bytes":
        return Bytes(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def as_dict(self) -> dict[str, int]:
        """Plain data for JSON."""
        return {"low": self.low, "expected": self.expected, "high": self.high}


ZERO = Bytes.exactly(0)


def total(amounts: Iterable[Bytes]) -> Bytes:
    """Sum of amounts, bound by bound; zero for none."""
    return reduce(Bytes.__add__, amounts, ZERO)


Parts = dict[str, Bytes]
"""Memory of a role by part: weights as they are read, masters (what float32 adds to those that are trained), adapter,
gradients, optimizer, gathered, casts, message, bucket, activations, logits, snapshot (of a checkpoint), kernels,
kv_cache, runtime; those with `cpu_` before lie in CPU memory where the process is on a GPU."""

TRANSIENT = ("gathered", "casts", "message", "activations", "logits", "snapshot")
"""Parts that exist while a role is at work; roles of one process take turns."""
ON_CPU = "cpu_"
