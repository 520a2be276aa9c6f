"""Engines, which sample from a language model whose weights may change while it runs. No learner, no registry."""
