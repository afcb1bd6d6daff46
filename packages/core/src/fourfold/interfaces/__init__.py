"""The roles a plugin can fill, one module each."""
