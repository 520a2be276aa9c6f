"""The rollout pool: engines in Ray actors, leases of requests, weight sync to all engines, and its check."""
