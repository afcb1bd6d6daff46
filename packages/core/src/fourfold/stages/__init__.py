"""Stages: requests, the process they run in, and the store of finished ones."""
