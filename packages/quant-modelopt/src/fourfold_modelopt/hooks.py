"""What this backend registers. Imports nothing heavy: the implementations stand as text."""

from __future__ import annotations

from fourfold.hookspecs import hookimpl
from fourfold.plugins import Entry, Environment, QuantizerEntry
from fourfold_modelopt.options import ModelOptOptions

MODELOPT = Environment(name="modelopt", package="fourfold-modelopt", extras=("toolchain",), provides="modelopt")


@hookimpl
def fourfold_register_unfusers() -> list[Entry]:
    """ModelOpt's own handling of fused experts."""
    return [
        Entry(
            name="modelopt",
            summary="experts stay fused; ModelOpt wraps them, one input scale a layer for all experts",
            implementation="fourfold_modelopt.unfuser:ModelOptUnfuser",
            environment=MODELOPT,
        )
    ]


@hookimpl
def fourfold_register_quantizers() -> list[QuantizerEntry]:
    """ModelOpt's NVFP4 algorithms."""
    return [
        QuantizerEntry(
            name="modelopt",
            summary="NVIDIA ModelOpt 0.47: NVFP4 calibration, scale search, GPTQ",
            implementation="fourfold_modelopt.quantizer:ModelOptQuantizer",
            options=ModelOptOptions,
            environment=MODELOPT,
            unfusers=("modelopt", "reference"),
        )
    ]


@hookimpl
def fourfold_register_exporters() -> list[Entry]:
    """The layout that ModelOpt's ``export_hf_checkpoint`` writes."""
    return [
        Entry(
            name="modelopt",
            summary="ModelOpt's unified Hugging Face layout, with hf_quant_config.json",
            implementation="fourfold_modelopt.exporter:ModelOptExporter",
        )
    ]
