"""Rewards of sampled answers: one file each, and the table of them."""
