"""Optimizers that torch lacks: 8-bit AdamW, Lion, Muon and schedule-free AdamW.

Each keeps its whole state as tensors in `state[parameter]`: scalars, and tensors of as many rows as the parameter has,
sharded as it is.
Each runs on plain parameters and on parameters sharded by rows (DTensor).
"""
