"""Evaluation: models measured on the same rows, figures with intervals, and gates."""
