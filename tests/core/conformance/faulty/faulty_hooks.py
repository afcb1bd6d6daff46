"""Registers every faulty backend under its class's name; imports none of them."""

from __future__ import annotations

import faulty_options

from fourfold.hookspecs import hookimpl
from fourfold.plugins import Entry, QuantizerEntry
from fourfold.reference.options import ReferenceUnfuserOptions

QUANTIZERS = (
    "SoundQuantizer", "RefusesLate", "NoKvScales", "LeavesOneOut", "NanBlockScale", "ZeroBlockScale", "OwnScales",
    "OneScheme", "WrongSigns", "Unseeded", "CountsTooFew", "CountsNothing", "HidesRare", "IgnoresErrorRule",
    "NoQuantizer",
)  # fmt: skip
OPTIONS = ("AnyAlgorithm", "OpenToAll", "Thawed", "TakesAnything", "OtherInJson")
UNFUSERS = ("SwapsGateAndUp", "NeverFuses", "ForgetsChanges", "TakesStrangers")
EXPORTERS = (
    "SoundExporter", "ChangesNorm", "LosesNorm", "ChangesCode", "ChangesBlockScale", "DoublesGlobalScale",
    "EmptiesIgnore", "LosesTokenizer", "LosesConfigKey", "WritesIntoArtifact", "MakesFolder", "StampsTime",
)  # fmt: skip


def _quantizer(name: str, kind: str, options: str, summary: str = "a test's") -> QuantizerEntry:
    return QuantizerEntry(
        name=name,
        summary=summary,
        implementation=f"faulty_parts:{kind}",
        options=getattr(faulty_options, options),
    )


@hookimpl
def fourfold_register_quantizers() -> list[QuantizerEntry]:
    return [
        *(_quantizer(kind.lower(), kind, "Sound") for kind in QUANTIZERS),
        *(_quantizer(kind.lower(), "SoundQuantizer", kind) for kind in OPTIONS),
        _quantizer("Two Words", "SoundQuantizer", "Sound"),
        _quantizer("two-lines", "SoundQuantizer", "Sound", summary="one\ntwo"),
    ]


@hookimpl
def fourfold_register_unfusers() -> list[Entry]:
    return [
        Entry(
            name=kind.lower(),
            summary="a test's",
            implementation=f"faulty_parts:{kind}",
            options=ReferenceUnfuserOptions,
        )
        for kind in UNFUSERS
    ]


@hookimpl
def fourfold_register_exporters() -> list[Entry]:
    return [Entry(name=kind.lower(), summary="a test's", implementation=f"faulty_parts:{kind}") for kind in EXPORTERS]
