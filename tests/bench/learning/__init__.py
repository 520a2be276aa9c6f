"""What six algorithms learn from one start in equal time."""
