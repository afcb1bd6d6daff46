"""The role *quantizer*: a model and calibration tokens in, canonical NVFP4 tensors out.

A whole minimal plugin, which quantizes weights alone with the reference codec::

    from typing import Literal

    from fourfold.config import KVCache, Scheme
    from fourfold.errors import ConfigError
    from fourfold.hookspecs import hookimpl
    from fourfold.interfaces.quantizer import Quantizer, QuantizerOptions
    from fourfold.plugins import QuantizerEntry

    class WeightsOnlyOptions(QuantizerOptions):
        algorithm: Literal["max"] = "max"

        def check(self, recipe, device):
            if recipe.scheme is not Scheme.W4A16 or recipe.kv_cache is not KVCache.NONE:
                raise ConfigError("weights-only reads no activations: use scheme W4A16 and kv_cache none")

    class WeightsOnly(Quantizer):
        def quantize(self, job, artifact, progress):
            from fourfold.nvfp4 import quantize  # imports torch, which registering must not

            progress.begin("weights", total=len(job.targets), unit="module")
            amax = {}
            for module in job.targets:
                own = module.read(job.source).abs().amax()
                amax[module.scale_group] = max(own, amax.get(module.scale_group, own))
            for module in job.targets:
                weight = quantize(module.read(job.source), global_amax=amax[module.scale_group])
                artifact.add_weight(module, weight, input_global_scale=None)
                progress.advance(1)

    @hookimpl
    def fourfold_register_quantizers():
        return [
            QuantizerEntry(
                name="weights-only", summary="reference codec, W4A16", options=WeightsOnlyOptions,
                implementation="my_plugin:WeightsOnly",
            )
        ]

A quantizer writes only what it quantized. Core copies every other tensor from the source, byte for byte, and
refuses to finish while a target is missing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from pydantic import model_validator

from fourfold.config import KVCache, Options, Recipe, Scheme

if TYPE_CHECKING:
    from fourfold.artifact import ArtifactWriter
    from fourfold.calibration import TokenSet
    from fourfold.checkpoint.index import TensorFolder
    from fourfold.interfaces.unfuser import Unfuser
    from fourfold.models.gemma4 import Gemma4Moe, LinearModule
    from fourfold.progress import Progress


class QuantizerOptions(Options):
    """Base of a quantizer's options. ``algorithm`` is what ``--algorithm`` sets; subclasses list theirs.

    ``parameter_prefixes`` names the algorithm to which options belong whose name begins so; another algorithm refuses
    them, as a value that nothing reads was meant for something else.
    """

    parameter_prefixes: ClassVar[Mapping[str, str]] = {}

    algorithm: str = "max"

    @model_validator(mode="after")
    def _parameters_belong_to_the_algorithm(self) -> Self:
        for name, field in type(self).model_fields.items():
            owner = next((a for p, a in self.parameter_prefixes.items() if name.startswith(p)), self.algorithm)
            if owner != self.algorithm and getattr(self, name) != field.default:
                raise ValueError(
                    f"{name} belongs to algorithm {owner}, not {self.algorithm}; "
                    f"leave it out, or say --algorithm {owner}"
                )
        return self

    def clean_up(self, stage_sha256: str) -> None:
        """Remove what the quantizer keeps to go on from: the stage of this identity stands, finished, on disk."""

    def check(self, recipe: Recipe, device: str) -> None:
        """Refuse, before anything starts, what cannot end well: :class:`fourfold.errors.ConfigError` says why.

        An algorithm whose result no server can load for experts is refused here, and so is one that needs a
        device other than ``device``.
        """

    def check_unfuser(self, unfuser: str) -> None:
        """Refuse an unfuser whose experts the algorithm would pass by without a word."""

    @property
    def needs_tokens(self) -> bool:
        """Whether the algorithm reads calibration tokens even where the scheme does not (W4A16)."""
        return False

    def reads_tokens(self, recipe: Recipe) -> bool:
        """Whether calibration tokens are read at all under ``recipe``."""
        return self.needs_tokens or recipe.scheme is Scheme.W4A4 or recipe.kv_cache is KVCache.FP8

    def recorded(self) -> dict[str, Any]:
        """The options that decide the result, as the manifest records them: no paths of this machine."""
        return self.model_dump(mode="json")


OptionsT = TypeVar("OptionsT", bound=QuantizerOptions)


@dataclass(frozen=True, kw_only=True)
class QuantizeJob:
    """What a quantizer is given.

    ``targets`` are the modules to quantize, patterns already resolved, in layer order. ``tokens`` is None
    when neither scheme nor algorithm reads activations. ``device`` is ``cpu``, ``cuda``, ``cuda:N`` or ``auto``
    (spread over all GPUs). ``stage_sha256`` is the hash of all that decides the result, code and packages among it,
    so that work kept for another run is known as such; None in a job made by hand.
    """

    model_path: Path
    source: TensorFolder
    gemma: Gemma4Moe
    targets: tuple[LinearModule, ...]
    recipe: Recipe
    tokens: TokenSet | None
    batch_size: int
    unfuser_name: str
    unfuser: Unfuser[Any]
    device: str
    seed: int
    stage_sha256: str | None = None


class Quantizer(ABC, Generic[OptionsT]):
    """Quantizes the targets of one job."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @abstractmethod
    def quantize(self, job: QuantizeJob, artifact: ArtifactWriter, progress: Progress) -> None:
        """Write every target to ``artifact``, once each; expert token counts and fallbacks too, where tokens are read.

        Raises :class:`fourfold.errors.QuantizationError` for a result that cannot be kept (a rare expert under
        rule ``error``, a non-finite scale: named by module).
        """
