"""What this backend registers. Importing it costs nothing; the implementations import the toolchain."""

from __future__ import annotations

from fourfold.hookspecs import hookimpl
from fourfold.plugins import Entry, Environment, QuantizerEntry
from fourfold_llmcompressor.options import LlmcompressorOptions

ENVIRONMENT = Environment(
    name="llmcompressor", package="fourfold-llmcompressor", extras=("toolchain",), provides="llmcompressor"
)


@hookimpl
def fourfold_register_unfusers() -> list[Entry]:
    """llm-compressor's own linearized experts."""
    return [
        Entry(
            name="llmcompressor",
            summary="llm-compressor's linearized experts (copies, one layer at a time)",
            implementation="fourfold_llmcompressor.unfuser:LinearizedExperts",
            environment=ENVIRONMENT,
        )
    ]


@hookimpl
def fourfold_register_quantizers() -> list[QuantizerEntry]:
    """llm-compressor's NVFP4 algorithms."""
    return [
        QuantizerEntry(
            name="llmcompressor",
            summary="llm-compressor 0.14: round to nearest, MSE, GPTQ, AutoRound and kin",
            implementation="fourfold_llmcompressor.quantizer:LlmcompressorQuantizer",
            options=LlmcompressorOptions,
            environment=ENVIRONMENT,
            unfusers=("reference", "llmcompressor"),
        )
    ]


@hookimpl
def fourfold_register_exporters() -> list[Entry]:
    """The layout llm-compressor saves; needs no toolchain."""
    return [
        Entry(
            name="compressed-tensors",
            summary="compressed-tensors keys, global scales stored as divisors",
            implementation="fourfold_llmcompressor.exporter:CompressedTensorsExporter",
        )
    ]
