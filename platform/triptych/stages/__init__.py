"""Stages from their inputs to their registered outputs: what all share here, a package for each family of kinds."""
