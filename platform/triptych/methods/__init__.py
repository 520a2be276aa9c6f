"""Parameter-efficient methods: one table of them all, and one way to apply them."""

from triptych.methods.table import METHODS, Entry, apply_method, trained

__all__ = ["METHODS", "Entry", "apply_method", "trained"]
