"""The built-in plugin: unfuser and quantizer without a toolchain."""
