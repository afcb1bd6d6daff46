"""``kl``: how far a model's next-token distributions are from the baseline's, on the baseline's own answers."""
