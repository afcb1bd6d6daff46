"""Fourfold's llm-compressor backend."""
