"""Stages that learn from rows (chats, preference pairs, labels): one file a kind, and the training that they share."""
