"""Asking a served model, keeping what it answers, and saying what a difference to the baseline is worth."""
