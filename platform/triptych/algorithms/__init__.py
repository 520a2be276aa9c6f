"""Algorithms of reinforcement learning: one file each, functions of tensors."""
