"""The learner and what it stands on; torch only, the launcher on Ray Train aside."""
