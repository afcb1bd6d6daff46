"""Checks of a quantizer: runs of the real stage on the suite's model, read back from their artifacts.

Shape letters: O out features, K in features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from fourfold.artifact import BLOCK_SCALE, GLOBAL_SCALE, INPUT_GLOBAL_SCALE, PACKED_WEIGHT, Artifact
from fourfold.checkpoint.index import TensorFolder
from fourfold.config import Config, KVCache, RareExpertRule, Recipe, Scheme
from fourfold.conformance.model import NUM_EXPERTS, make_tokens
from fourfold.conformance.subject import ConformanceError, NotApplicable, Refusal, Subject, require
from fourfold.errors import ConfigError, FourfoldError, QuantizationError
from fourfold.interfaces.quantizer import QuantizerOptions
from fourfold.manifest import Component, sha256_files
from fourfold.models.gemma4 import LinearModule, ModuleKind, read_gemma4
from fourfold.plugins import QuantizerEntry
from fourfold.progress import NoProgress
from fourfold.stages.quantize import run_quantize
from fourfold.stages.request import QuantizeRequest
from fourfold.verify.fit import MAX_TENSOR_ERROR

_BATCH_SIZE = 2


class _Run(Config):
    """What is asked of one run."""

    recipe: Recipe
    unfuser: str
    seed: int = 0


def accepted_work_finishes(subject: Subject) -> None:
    """Every scheme and KV cache with every unfuser is refused by ``check``/``check_unfuser``, or runs to the end."""
    accepted = [*_accepted(subject), *_accepted(subject, KVCache.FP8)]
    require(accepted, f"{subject.name}: refuses every scheme with every unfuser of {list(_entry(subject).unfusers)}")
    for recipe, unfuser in accepted:
        _artifact(subject, _Run(recipe=recipe, unfuser=unfuser))


def every_target_is_written(subject: Subject) -> None:
    """All targets stand in the artifact with canonical dtypes and shapes, for all linears and for experts only."""
    for recipe, unfuser in _accepted(subject):
        for targets in ("all-linear", "experts-only"):
            artifact = _artifact(subject, _Run(recipe=recipe.model_copy(update={"targets": targets}), unfuser=unfuser))
            for module in _targets(subject, targets):
                _require_canonical(artifact, module, recipe.scheme)


def schemes_may_differ(subject: Subject) -> None:
    """Targets that a W4A4 recipe names ``weights_only`` get no input scale, and all others theirs."""
    _scheme(subject, Scheme.W4A4)  # else not applicable
    accepted = [(recipe, unfuser) for recipe, unfuser in _accepted(subject) if recipe.scheme is Scheme.W4A4]
    for (recipe, unfuser), pattern in product(accepted, ("*.self_attn.*", "*.experts.*")):
        mixed = recipe.model_copy(update={"weights_only": (pattern,)})
        try:
            _options(subject).check(mixed, "cpu")
        except ConfigError:
            raise NotApplicable("modules of several schemes are refused by its options") from None
        try:
            artifact = _artifact(subject, _Run(recipe=mixed, unfuser=unfuser))
        except QuantizationError as error:
            raise ConformanceError(f"{subject.name}: accepts weights_only, then fails: {error}") from error
        for module in _targets(subject, "all-linear"):
            _require_canonical(artifact, module, mixed.scheme_of(module.name))


def scales_are_usable(subject: Subject) -> None:
    """Scales are finite; global scales positive, block scales positive wherever a block has any code."""
    import torch

    for artifact, _ in _artifacts(subject):
        for name in artifact.manifest.quantized_modules:
            weight = artifact.weight(name)
            block = weight.block_scale.float()
            require(bool(torch.isfinite(block).all()), f"{name}: a block scale is not finite")
            require(bool((block >= 0).all()), f"{name}: a block scale is negative")
            codes = (weight.packed_weight & 0x77).reshape(*block.shape, -1).amax(-1)
            require(
                not bool(((block == 0) & (codes > 0)).any()), f"{name}: a block scale is zero above codes that are not"
            )


def scale_groups_share(subject: Subject) -> None:
    """Modules that a server fuses have one global scale and one input scale: gate and up, q and k and v."""
    for artifact, _ in _artifacts(subject):
        found: dict[tuple[str, str], set[float]] = defaultdict(set)
        for module in _quantized(subject, artifact):
            for kind in (GLOBAL_SCALE, INPUT_GLOBAL_SCALE):
                name = f"{module.name}.{kind}"
                if name in artifact.tensors:
                    found[module.scale_group, kind].add(float(artifact.tensors.read(name)))
        for (group, kind), values in found.items():
            require(len(values) == 1, f"{group}: its modules have different {kind}: {sorted(values)}")


def decoded_weights_are_close(subject: Subject) -> None:
    """Every decoded weight is as close to its source as rounding to NVFP4 can leave it, unless marked transformed."""
    source = TensorFolder(subject.model_path)
    for artifact, _ in _artifacts(subject):
        for module in _quantized(subject, artifact):
            if module.name in artifact.manifest.transformed:
                continue
            weight = module.read(source).float()
            error = float((artifact.weight(module.name).dequantize() - weight).norm() / weight.norm())
            require(
                error <= MAX_TENSOR_ERROR,
                f"{module.name}: decodes {error:.3f} from its source; {MAX_TENSOR_ERROR} at most",
            )


def same_seed_same_bytes(subject: Subject) -> None:
    """Two runs of one request give the same files, manifest included."""
    recipe, unfuser = _first_accepted(subject)
    first = _artifact(subject, _Run(recipe=recipe, unfuser=unfuser))
    second = _quantize(subject, subject.work / "again", _Run(recipe=recipe, unfuser=unfuser))
    a, b = (sha256_files(artifact.path, skip=()) for artifact in (first, second))
    differing = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    require(not differing, f"{subject.name}: two runs with one seed differ in {', '.join(differing)}")


def expert_tokens_are_counted(subject: Subject) -> None:
    """Where activations are read, the tokens of each layer's experts are recorded, and add up."""
    recipe, unfuser = _scheme(subject, Scheme.W4A4)
    counts = _artifact(subject, _Run(recipe=recipe, unfuser=unfuser)).manifest.expert_token_counts
    gemma = read_gemma4(TensorFolder(subject.model_path))
    expected = make_tokens().num_tokens * gemma.experts_per_token
    for layer in range(gemma.num_layers):
        name = gemma.experts_module(layer)
        found = counts.get(name, ())
        require(len(found) == NUM_EXPERTS, f"{name}: {len(found)} expert token counts recorded, not {NUM_EXPERTS}")
        require(sum(found) == expected, f"{name}: {sum(found)} routed tokens recorded, {expected} were routed")


def rare_experts_are_not_hidden(subject: Subject) -> None:
    """An expert below ``min_expert_tokens`` ends the run under rule ``error``; rule ``layer-max`` records it."""
    recipe, unfuser = _scheme(subject, Scheme.W4A4)
    counts = _artifact(subject, _Run(recipe=recipe, unfuser=unfuser)).manifest.expert_token_counts
    require(counts, f"{subject.name}: no expert token counts are recorded")
    # so that every layer has an expert that is not rare, and some have one that is
    least = min(max(layer) for layer in counts.values())
    rare = {f"{name}.{e}" for name, layer in counts.items() for e, count in enumerate(layer) if count < least}
    strict = recipe.model_copy(update={"min_expert_tokens": least})
    fallbacks = _artifact(subject, _Run(recipe=strict, unfuser=unfuser)).manifest.fallbacks
    hidden = sorted(expert for expert in rare if not any(f.module.startswith(f"{expert}.") for f in fallbacks))
    require(not hidden, f"{', '.join(hidden[:4])}: fewer than {least} tokens, and no fallback recorded")
    try:
        erring = strict.model_copy(update={"rare_experts": RareExpertRule.ERROR})
        _artifact(subject, _Run(recipe=erring, unfuser=unfuser))
    except QuantizationError as error:
        require("expert" in str(error), f"{subject.name}: rule error does not speak of experts: {error}")
        return
    raise ConformanceError(f"{subject.name}: rule error let rare experts pass; raise QuantizationError")


def refusals_come_first(subject: Subject) -> None:
    """What cannot end well is a :class:`ConfigError` from the options, before anything is imported."""
    if not subject.refusals:
        raise NotApplicable("no refusals are declared")
    for refusal in subject.refusals:
        _require_refusal(subject, refusal)


def _require_refusal(subject: Subject, refusal: Refusal) -> None:
    try:
        options = subject.entry.options.parse({**subject.options, **refusal.options}, where=str(subject.role))
        if not isinstance(options, QuantizerOptions):
            raise ConformanceError(f"{subject.name}: its options are no QuantizerOptions")
        options.check(Recipe.parse(dict(refusal.recipe), where="recipe"), refusal.device)
        options.check_unfuser(refusal.unfuser or _entry(subject).unfusers[0])
    except ConfigError as error:
        require(refusal.message in str(error), f"{subject.name}: refused, but without {refusal.message!r}: {error}")
        return
    raise ConformanceError(f"{subject.name}: accepts what it was to refuse with {refusal.message!r}")


def _entry(subject: Subject) -> QuantizerEntry:
    return subject.registry.quantizer(subject.name)


def _accepted(subject: Subject, kv_cache: KVCache = KVCache.NONE) -> Iterator[tuple[Recipe, str]]:
    options = _options(subject)
    for scheme in Scheme:
        for unfuser in _entry(subject).unfusers:
            recipe = Recipe(scheme=scheme, kv_cache=kv_cache)
            try:
                options.check(recipe, "cpu")
                options.check_unfuser(unfuser)
            except ConfigError:
                continue
            yield recipe, unfuser


def _options(subject: Subject) -> QuantizerOptions:
    options = subject.parsed_options
    if not isinstance(options, QuantizerOptions):
        raise ConformanceError(f"{subject.name}: its options are no QuantizerOptions")
    return options


def _first_accepted(subject: Subject) -> tuple[Recipe, str]:
    for accepted in _accepted(subject):
        return accepted
    raise ConformanceError(f"{subject.name}: refuses every scheme on the CPU")


def _scheme(subject: Subject, scheme: Scheme) -> tuple[Recipe, str]:
    for recipe, unfuser in _accepted(subject):
        if recipe.scheme is scheme:
            return recipe, unfuser
    raise NotApplicable(f"scheme {scheme} is refused by its options")


def _artifacts(subject: Subject) -> Iterator[tuple[Artifact, Recipe]]:
    for recipe, unfuser in _accepted(subject):
        yield _artifact(subject, _Run(recipe=recipe, unfuser=unfuser)), recipe


def _artifact(subject: Subject, run: _Run) -> Artifact:
    return subject.once(f"run-{run.sha256()[:12]}", lambda folder: _quantize(subject, folder, run))  # type: ignore[no-any-return]


def _quantize(subject: Subject, folder: Path, run: _Run) -> Artifact:
    tokens = make_tokens()
    tokens.save(subject.work / "tokens")
    options = subject.parsed_options
    folder.mkdir(parents=True)
    request = QuantizeRequest(
        model_path=subject.model_path,
        source_files=sha256_files(subject.model_path),
        tokens_path=subject.work / "tokens" if _needs_tokens(options, run.recipe) else None,
        tokens_sha256=tokens.sha256,
        output=folder,
        recipe=run.recipe,
        unfuser=Component(name=run.unfuser),
        quantizer=Component(name=subject.name, options=options.model_dump(mode="json")),
        batch_size=_BATCH_SIZE,
        device="cpu",
        seed=run.seed,
    )
    try:
        run_quantize(request, subject.registry, NoProgress())
    except QuantizationError:
        raise
    except FourfoldError as error:
        asked = f"{run.recipe.scheme} with KV cache {run.recipe.kv_cache} behind unfuser {run.unfuser!r}"
        raise ConformanceError(f"{subject.name}: {asked} was accepted, then refused: {error}") from error
    return Artifact(folder)


def _needs_tokens(options: object, recipe: Recipe) -> bool:
    return isinstance(options, QuantizerOptions) and options.reads_tokens(recipe)


def _targets(subject: Subject, targets: str) -> list[LinearModule]:
    linears = read_gemma4(TensorFolder(subject.model_path)).linears.values()
    return [m for m in linears if targets == "all-linear" or m.kind is ModuleKind.EXPERT]


def _quantized(subject: Subject, artifact: Artifact) -> list[LinearModule]:
    names = frozenset(artifact.manifest.quantized_modules)
    return [module for module in _targets(subject, "all-linear") if module.name in names]


def _require_canonical(artifact: Artifact, module: LinearModule, scheme: Scheme) -> None:
    rows, columns = module.shape
    expected: dict[str, tuple[str, tuple[int, ...]] | None] = {
        PACKED_WEIGHT: ("U8", (rows, columns // 2)),
        BLOCK_SCALE: ("F8_E4M3", (rows, columns // 16)),
        GLOBAL_SCALE: ("F32", ()),
        INPUT_GLOBAL_SCALE: ("F32", ()) if scheme is Scheme.W4A4 else None,
    }
    for kind, form in expected.items():
        name = f"{module.name}.{kind}"
        entry = artifact.tensors.tensors.get(name)
        found = None if entry is None else (entry.dtype, entry.shape)
        require(found == form, f"{name}: {found}, expected {form or 'no such tensor'} under scheme {scheme}")
