"""Parameter-efficient methods: one table of them all, and one way to apply them."""

from triptych.methods.apply import apply_method
from triptych.methods.parameters.total import trained
from triptych.methods.table import METHODS, Entry

__all__ = ["METHODS", "Entry", "apply_method", "trained"]
