"""Start or join Ray, and look at the machine (`doctor`)."""
