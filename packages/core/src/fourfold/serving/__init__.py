"""Served models, whatever serves them: attaching, owning a server for a while, asking it a few questions."""
