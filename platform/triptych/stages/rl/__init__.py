"""Reinforcement learning of a policy: the driver, what a rank holds, and its step."""
