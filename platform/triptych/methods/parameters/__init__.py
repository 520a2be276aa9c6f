"""Trained parameters of each method, from a model's sizes alone: no torch, no peft."""
