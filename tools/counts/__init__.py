"""Counts of what makes a code base hard to find one's way in."""
