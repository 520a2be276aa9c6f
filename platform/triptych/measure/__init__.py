"""The learner itself, measured without data: dry runs, traces of its memory, probes and the speed of a machine."""
