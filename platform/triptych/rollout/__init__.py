"""The rollout pool: vLLM engines in Ray actors, leases, weight sync and the check after it."""
