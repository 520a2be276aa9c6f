"""Forward passes of a base with what methods attach to it: packed attention, layouts, roles. torch, no learner."""
