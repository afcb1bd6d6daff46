"""What this plugin registers. Imports nothing heavy: the implementation stands as text."""

from fourfold.hookspecs import hookimpl
from fourfold.plugins import QuantizerEntry
from fourfold_clipped.options import ClippedOptions


@hookimpl
def fourfold_register_quantizers() -> list[QuantizerEntry]:
    """One quantizer."""
    return [
        QuantizerEntry(
            name="clipped",
            summary="weights alone (W4A16), the largest values of a scale group clipped",
            options=ClippedOptions,
            implementation="fourfold_clipped.quantizer:ClippedQuantizer",
            unfusers=("reference",),
        )
    ]
