"""Checkpoints on disk: reading, writing, layouts."""
