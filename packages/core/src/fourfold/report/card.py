"""A model card for the hub: the published card's tables, filled from measurements; what was not measured is left out.

The tables and their rows follow the card of the first community NVFP4 checkpoint of this model. A row whose figures
were not found is not written, and the card's last lines name all such rows.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from fourfold.checkpoint.atomic import write_whole
from fourfold.config import Recipe, Scheme
from fourfold.page import Table, markdown_table
from fourfold.plugins import Registry
from fourfold.report.candidate import Candidate, choose
from fourfold.report.collect import Measured
from fourfold.report.reproduce import reproduce
from fourfold.results import Verdict
from fourfold.study.table import count_doubts

#: The published card's benchmarks; others that were measured follow them.
PUBLISHED_BENCHMARKS = (
    "GSM8K (flexible-extract)", "GSM8K (strict-match)", "IFEval prompt-strict", "IFEval inst-strict",
    "IFEval prompt-loose", "IFEval inst-loose",
)  # fmt: skip
_SCHEMES = {
    Scheme.W4A4: "W4A4 (FP4 weights and activations)",
    Scheme.W4A16: "W4A16 (FP4 weights, 16-bit activations)",
}

#: A row of a table; None is a figure that was not measured.
_Row = tuple[str | None, ...]


def write_card(
    measured: Measured,
    folder: Path,
    path: Path,
    registry: Registry,
    *,
    checkpoint: str | None,
    base_model: str | None,
    license_name: str,
) -> tuple[str, ...]:
    """Write the card to ``path``; returns the names of the rows that were not measured.

    ``registry`` knows the backends' defaults, which the command that makes the checkpoint again leaves out.
    """
    candidate = choose(measured, folder, checkpoint)
    absent: list[str] = []
    parts = [
        f"# {candidate.name}",
        _summary(candidate),
        "## Key Specs",
        _key_specs(candidate, absent),
        "## Benchmarks",
        "### Quality",
        _quality(candidate, absent),
        "### Speed & Size",
        _speed(candidate, absent),
        "## Serving with vLLM",
        _serving(candidate, absent),
        "## How this was made",
        _made(candidate, registry, absent),
        "## Calibration",
        _calibration(candidate, absent),
        "## Limitations",
        _limitations(candidate, absent),
        "## License",
        f"{license_name}, as the base model's.",
    ]
    text = "\n\n".join(part.strip() for part in parts if part.strip())
    write_whole(path, f"{front_matter(candidate, base_model, license_name)}\n{text}\n")
    return tuple(absent)


def front_matter(candidate: Candidate, base_model: str | None, license_name: str) -> str:
    """The card's YAML between its two lines of dashes."""
    from huggingface_hub import ModelCardData

    layout = candidate.manifest.layout if candidate.manifest else None
    tags = ["nvfp4", "fp4", "quantized", "mixture-of-experts", "gemma4", "vllm", "fourfold"]
    data = ModelCardData(
        base_model=base_model,
        base_model_relation="quantized" if base_model else None,
        license=license_name,
        pipeline_tag="image-text-to-text" if candidate.has_vision else "text-generation",
        tags=tags + ([layout] if layout else []),
        quantized_by="fourfold",
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _summary(candidate: Candidate) -> str:
    lines = ["NVFP4 quantization of a Gemma 4 mixture-of-experts model."]
    if candidate.manifest is not None:
        lines.append(f"{_scheme(candidate.manifest.recipe)}.")
    if candidate.verified is not None:
        lines.append(_verified(candidate))
    return " ".join(lines)


def _scheme(recipe: Recipe) -> str:
    patterns = ", ".join(f"`{pattern}`" for pattern in recipe.weights_only)
    alone = f"; {_SCHEMES[Scheme.W4A16]} in {patterns}" if patterns else ""
    return f"{_SCHEMES[recipe.scheme]}{alone}"


def _verified(candidate: Candidate) -> str:
    checks = f"{candidate.checks or 0:,} checks"
    if not candidate.verified:
        return f"**Not right** by value against its source: {candidate.findings:,} findings in {checks}."
    if not candidate.doubts:
        return f"Verified by value against its source: {checks}, no finding."
    return (
        f"Verified by value against its source: {checks}, nothing wrong, and {count_doubts(candidate.doubts)}: "
        "what no file can settle and scores decide (`fourfold verify` names each)."
    )


def _key_specs(candidate: Candidate, absent: list[str]) -> str:
    before, after, shape, manifest = candidate.bytes_before, candidate.bytes_after, candidate.shape, candidate.manifest
    rows: list[_Row] = [
        ("Size on disk", _size(before), _size(after)),
        ("Compression", "-" if before and after else None, f"{before / after:.2f}x" if before and after else None),
    ]
    if shape is not None:
        experts = next(linear for linear in shape.layers[0].linears if linear.copies > 1)
        modalities = "Text, Image, Video" if candidate.has_vision else "Text"
        same = (
            ("Total parameters", _count(shape.num_parameters)),
            ("Active parameters", _count(shape.active_parameters)),
            ("Architecture", f"MoE: {experts.copies} experts, {experts.active} active/token"),
            ("Context window", f"{shape.max_positions:,} tokens"),
            ("Modalities", modalities),
        )
        rows += [(name, value, value) for name, value in same]
    else:
        rows += [(name, None, None) for name in ("Total parameters", "Active parameters", "Architecture")]
    rows.append(("Quantization", "-", _scheme(manifest.recipe) if manifest else None))
    return _table(("", "Original (BF16)", "NVFP4 (this)"), rows, "Key Specs", absent)


def _quality(candidate: Candidate, absent: list[str]) -> str:
    found = {c.label: c for c in candidate.comparisons()}
    absent += [f"Quality: {label}" for label in PUBLISHED_BENCHMARKS if label not in found]
    ordered = [found.pop(label) for label in PUBLISHED_BENCHMARKS if label in found] + list(found.values())
    if not ordered:
        return "No benchmark was measured against BF16."
    rows = [
        (c.label, _percent(c.baseline_score), _percent(c.score), "-" if c.retained is None else _percent(c.retained, 1))
        for c in ordered
    ]
    means = [sum(getattr(c, field) for c in ordered) / len(ordered) for field in ("baseline_score", "score")]
    retained = _percent(means[1] / means[0], 1) if means[0] else "-"
    rows.append(("Average", _percent(means[0]), _percent(means[1]), retained))
    table = markdown_table(Table("", ("Benchmark", "BF16 (reference)", "NVFP4 (this)", "Retained"), tuple(rows)))
    words = "\n".join(f"- {c.label}, {c.prompts:,} prompts: {c.words}" for c in ordered)
    return f"Both served and asked the same prompts, on {candidate.machines}.\n\n{table}\n{words}"


def _speed(candidate: Candidate, absent: list[str]) -> str:
    rows: list[_Row] = []
    bench = candidate.bench
    if bench is not None and bench.baseline is not None:
        for ours, theirs in zip(bench.subject.figures, bench.baseline.figures, strict=True):
            label = f"{ours.label} ({ours.unit})" if ours.unit == "ms" else ours.label
            factor = _factor(theirs.median, ours.median, larger_is_better=ours.larger_is_better)
            rows.append((label, f"{theirs.median:.4g}", f"{ours.median:.4g}", factor))
    else:
        # The evaluation's load is its own, so the published card's 1000 tokens are not in the label.
        for label, name, larger in (("Tokens/sec", "throughput", True), ("TTFT (ms)", "ttft", False)):
            before, after = candidate.speed(name)
            shown = None if before is None else f"{before:.4g}", None if after is None else f"{after:.4g}"
            rows.append((label, *shown, _factor(before, after, larger_is_better=larger)))
    sizes = candidate.bytes_before, candidate.bytes_after
    rows.append(("Model size on disk", _size(sizes[0]), _size(sizes[1]), _factor(*sizes, larger_is_better=False)))
    machine = (", ".join(bench.machine.gpus) or bench.machine.processor) if bench else candidate.machines
    where = f"On {machine}.\n\n" if machine and len(rows) > 1 else ""
    return where + _table(("Metric", "BF16", "NVFP4", "Factor"), rows, "Speed & Size", absent)


def _serving(candidate: Candidate, absent: list[str]) -> str:
    plan = candidate.bench.subject.command if candidate.bench else None
    if plan is not None:
        command = shlex.join([*(f"{k}={v}" for k, v in plan.environment.items()), *plan.command])
        flags = Table("", ("Flag", "Why"), tuple((f"`{reason.flag}`", reason.why) for reason in plan.reasons))
        return f"```bash\n{command}\n```\n\n### Key Flags\n\n{markdown_table(flags)}"
    absent.append("Serving: the command was not run for this card (no bench in the record)")
    quantization = " --quantization modelopt" if candidate.manifest and candidate.manifest.layout == "modelopt" else ""
    return (
        "`fourfold serve FOLDER --dry-run` prints the flags for a GPU with a reason for each; at least:\n\n"
        f"```bash\nvllm serve ./{candidate.name}{quantization}\n```"
    )


def _made(candidate: Candidate, registry: Registry, absent: list[str]) -> str:
    manifest = candidate.manifest
    if manifest is None:
        absent.append("How this was made: no manifest beside the evaluation")
        return "The checkpoint's manifest was out of sight when this card was written."
    recipe, packages = manifest.recipe, ", ".join(f"{k} {v}" for k, v in sorted(manifest.packages.items()))
    threads = f"; {manifest.threads} CPU threads" if manifest.threads else ""
    return "\n".join(
        [
            f"- Quantizer: `{manifest.quantizer.name}`, {_options(manifest.quantizer.options)}",
            f"- Experts un-fused by: `{manifest.unfuser.name}`",
            f"- Targets: {recipe.targets}"
            + (f", without {', '.join(f'`{p}`' for p in recipe.exclude)}" if recipe.exclude else ""),
            f"- Layout: {manifest.layout}; KV cache: {recipe.kv_cache}; seed {manifest.seed}{threads}",
            f"- Packages: {packages}",
            "",
            "### Reproduce",
            "",
            reproduce(manifest, registry),
        ]
    )


def _calibration(candidate: Candidate, absent: list[str]) -> str:
    manifest = candidate.manifest
    if manifest is None:
        absent.append("Calibration")
        return "Not known without the manifest."
    if manifest.calibration is None:
        return "None: weights alone."
    record, spec = manifest.calibration, manifest.calibration.spec
    lines = [
        f"- Data: {spec.get('source')}, {spec.get('samples')} rows of {spec.get('sequence_length')} tokens, "
        f"batch {spec.get('batch_size')}, seed {spec.get('seed')}: {record.num_tokens:,} tokens",
        f"- Tokens, sha256: `{record.tokens_sha256}`",
    ]
    counts = [count for layer in manifest.expert_token_counts.values() for count in layer]
    if counts:
        lines.append(
            f"- Tokens per expert, routed as the model routes: from {min(counts):,} to {max(counts):,}, "
            f"{sum(counts) / len(counts):,.0f} on average; {counts.count(0)} of {len(counts):,} experts got none"
        )
    else:
        absent.append("Calibration: tokens per expert")
    return "\n".join(lines)


def _limitations(candidate: Candidate, absent: list[str]) -> str:
    worse = [c.label for c in candidate.comparisons() if c.verdict is Verdict.WORSE]
    lines = [f"- Worse than BF16 beyond chance: {', '.join(worse)}"] if worse else []
    if candidate.manifest and candidate.manifest.fallbacks:
        rules = sorted({fallback.rule for fallback in candidate.manifest.fallbacks})
        lines.append(f"- {len(candidate.manifest.fallbacks)} modules got a derived value ({', '.join(rules)})")
    if cut := candidate.cut:
        lines.append(f"- Cut by a limit: {', '.join(f'{t.task} to {t.prompts:,} prompts' for t in cut)}")
    lines.append("- Community quantization, not an official NVIDIA or Google release")
    if absent:
        lines += ["", f"Not measured, and so not in this card: {'; '.join(absent)}."]
    return "\n".join(lines)


def _table(header: tuple[str, ...], rows: list[_Row], where: str, absent: list[str]) -> str:
    """The rows that have every figure; the others' names go to ``absent``."""
    whole = [tuple(cell for cell in row if cell is not None) for row in rows if None not in row]
    absent += [f"{where}: {row[0]}" for row in rows if None in row]
    return markdown_table(Table("", header, tuple(whole))) if whole else "Nothing of this was measured."


def _options(options: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items()) or "its defaults"


def _size(size: int | None) -> str | None:
    if size is None:
        return None
    return f"{size / 1e9:.2f} GB" if size >= 10**8 else f"{size / 1e6:.2f} MB"


def _count(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 10**8 else f"{count / 1e6:.2f}M"


def _percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f}%"


def _factor(before: float | None, after: float | None, *, larger_is_better: bool) -> str | None:
    if not before or not after:
        return None
    return f"{after / before if larger_is_better else before / after:.2f}x"
