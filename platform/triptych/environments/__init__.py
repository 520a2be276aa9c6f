"""Environments that reply to a policy's turns; no torch and no Ray."""
