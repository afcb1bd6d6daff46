"""``fourfold quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fourfold.cli.options import (
    MADE_ANEW,
    BatchSize,
    CalibrationField,
    CalibrationSource,
    ChatTemplate,
    Samples,
    SequenceLength,
    given,
)

if TYPE_CHECKING:
    from fourfold.pipeline import QuantizeResult
    from fourfold.verify import VerifyReport


def quantize(
    model: Annotated[str, typer.Argument(help="'demo', a folder, or a hub id.")],
    output: Annotated[Path, typer.Option(help="Folder of the checkpoint; must be empty or absent.")],
    quantizer: Annotated[str, typer.Option(help="Backend; see fourfold backends.")] = "modelopt",
    unfuser: Annotated[str | None, typer.Option(help="How experts are un-fused; the backend's own by default.")] = None,
    layout: Annotated[str, typer.Option(help="modelopt or compressed-tensors.")] = "modelopt",
    scheme: Annotated[str, typer.Option(help="W4A4 or W4A16.")] = "W4A4",
    algorithm: Annotated[str | None, typer.Option(help="One of the quantizer's algorithms; max by default.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Further quantizer option, KEY=VALUE.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Hidden states wait in host memory (reference).")] = False,
    input_scales: Annotated[
        Path | None, typer.Option(help="Take input scales from this checkpoint, calibrate nothing (reference).")
    ] = None,
    unfuser_option: Annotated[list[str] | None, typer.Option(help="Unfuser option, KEY=VALUE.")] = None,
    targets: Annotated[
        str, typer.Option(help="all-linear, experts-only, attention-bf16, dense-mlp-bf16.")
    ] = "all-linear",
    include: Annotated[list[str] | None, typer.Option(help="Pattern of modules to quantize.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Pattern of modules to leave in BF16.")] = None,
    weights_only: Annotated[
        list[str] | None, typer.Option(help="Pattern of modules whose activations stay BF16 under W4A4.")
    ] = None,
    kv_cache: Annotated[str, typer.Option(help="none or fp8.")] = "none",
    rare_experts: Annotated[str, typer.Option(help="layer-max or error.")] = "layer-max",
    min_expert_tokens: Annotated[int, typer.Option(help="Fewer calibration tokens make an expert rare.")] = 1,
    calibration: CalibrationSource = None,
    field: CalibrationField = None,
    chat_template: ChatTemplate = False,
    samples: Samples = None,
    sequence_length: SequenceLength = None,
    batch_size: BatchSize = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto for several GPUs.")] = "cpu",
    stages: Annotated[Path | None, typer.Option(help="Keep finished stages here for other runs.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> int:
    """Quantize a Gemma 4 MoE to NVFP4, write a checkpoint and verify it."""
    from fourfold.checkpoint.atomic import is_current
    from fourfold.cli.console import print_json, progress_bar, say
    from fourfold.cli.verify import print_report
    from fourfold.config import parse_pairs
    from fourfold.errors import ConfigError, RuleError
    from fourfold.pipeline import Pipeline
    from fourfold.plan import QuantizeConfig, default_calibration, plan_quantize
    from fourfold.plugins import Registry, build_plugin_manager

    if unfuser_option and unfuser is None:
        raise ConfigError("--unfuser-option: say which unfuser it is for with --unfuser; see fourfold backends")
    rows = given(
        source=calibration, field=field, chat_template=chat_template or None, samples=samples,
        sequence_length=sequence_length, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    given_options = parse_pairs(option or [])
    of_flags = given(algorithm=algorithm, stream=stream or None, input_scales=input_scales and str(input_scales))
    if twice := given_options.keys() & of_flags.keys():
        name = min(twice)
        flag = name.replace("_", "-")
        raise ConfigError(f"--{flag} and --option {name}=... say the same thing twice; give --{flag} alone")
    given_options = {"algorithm": "max"} | given_options | of_flags
    config = QuantizeConfig.parse(
        {
            "model": model,
            "quantizer": {"name": quantizer, "options": given_options},
            "unfuser": {"name": unfuser, "options": parse_pairs(unfuser_option or [])} if unfuser else None,
            "layout": layout,
            "recipe": {
                "scheme": scheme, "targets": targets, "include": include or ("*",), "exclude": exclude or (),
                "weights_only": weights_only or (), "kv_cache": kv_cache,
                "rare_experts": rare_experts, "min_expert_tokens": min_expert_tokens,
            },
            "calibration": default_calibration(model) | rows,
            "device": device,
            "seed": seed,
        },
        where="",
    )  # fmt: skip
    registry = Registry(build_plugin_manager())
    plan = plan_quantize(config, registry)
    was_here = is_current(output)
    with progress_bar(quiet=json) as progress:
        try:
            result, report = Pipeline(plan, registry, progress, output=output, stages=stages).run()
        except RuleError as error:
            if not json:
                print_report(error.report)
            raise
    if json:
        print_json(result)
    else:
        _print_result(result, report)
        if was_here:
            say(MADE_ANEW)
    return 0 if result.verified else 1


def _print_result(result: QuantizeResult, report: VerifyReport) -> None:
    from fourfold.cli.console import gigabytes, print_table, say
    from fourfold.cli.verify import print_report

    sizes = f"{gigabytes(result.bytes_before)} -> {gigabytes(result.bytes_after)} ({result.factor:.2f} x smaller)"
    say(f"{result.output}: {sizes}, {result.quantized_modules:,} modules in NVFP4")
    if not result.calibration_tokens:
        say("weights alone: no calibration tokens were used")
    elif result.uncalibrated_experts:
        shown = ", ".join(result.uncalibrated_experts[:5])
        say(f"{len(result.uncalibrated_experts)} experts saw no calibration token: {shown}")
    elif result.unrouted_experts:
        number = len(result.unrouted_experts)
        say(f"{number} experts were routed no calibration token (all experts were shown every token)")
    else:
        say(f"every expert saw some of the {result.calibration_tokens:,} calibration tokens")
    rows = [(s.name, f"{s.seconds:.1f}", "reused" if s.reused else "") for s in result.stages]
    print_table("stages", ("stage", "seconds", ""), rows)
    print_report(report)
