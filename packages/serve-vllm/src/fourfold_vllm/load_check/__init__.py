"""The load check: vLLM loads a checkpoint into poisoned parameters, and every write is traced to its key."""
