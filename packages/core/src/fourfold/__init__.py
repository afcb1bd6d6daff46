"""Fourfold: Gemma 4 mixture-of-experts checkpoints to verified NVFP4. Importing it imports nothing."""
