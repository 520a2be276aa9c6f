"""Every method under every strategy, on a tiny model."""
