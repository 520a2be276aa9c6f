"""One file a stage; each reads from top to bottom."""
