"""Objectives of the stage kinds, one file a kind, and the forward passes that score samples."""
