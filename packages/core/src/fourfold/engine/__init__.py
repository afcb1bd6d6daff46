"""The built-in engine: calibration on the grouped path, layers streamed one by one, batched rounding.

Nothing here needs a toolchain. :mod:`fourfold.reference.quantizer` calls it, and :mod:`fourfold.sensitivity` its model.
"""
