"""Start or join Ray, check that what is asked can be placed, and look at the machine (`doctor`)."""
