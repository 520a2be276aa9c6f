"""Triptych: train, tune and serve language-model adapters on Ray."""

__version__ = "0.1.0"
