"""Fourfold's NVIDIA ModelOpt backend: unfuser, quantizer and the ``modelopt`` layout's exporter."""
