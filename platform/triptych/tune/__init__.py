"""Sweeps on Ray Tune: trials of one stage, each trained as `triptych run` would, under one budget."""
