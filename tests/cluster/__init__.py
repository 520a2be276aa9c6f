"""A package, so that the cluster which its tests share ends with them, and not with those of all folders."""
