"""The rollout pool: engines in Ray actors, leases, weights for all of them and the check after a sync."""
