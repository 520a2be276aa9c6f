"""Ray clusters: start or join one, send runs and endpoints to one, and check machine or cluster (`doctor`)."""
