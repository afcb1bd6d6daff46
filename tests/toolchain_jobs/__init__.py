"""Jobs done inside a toolchain's environment by one process of it, and their results, read outside.

``inside`` runs there (without pytest), ``outside`` in the tests; each backend's folder adds its toolchain's actions.
"""
