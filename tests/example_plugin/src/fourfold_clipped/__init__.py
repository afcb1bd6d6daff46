"""Example backend: weights alone, their largest values clipped."""
