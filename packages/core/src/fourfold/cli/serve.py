"""``fourfold serve``, ``fourfold smoke`` and ``fourfold bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fourfold.interfaces.server import ServePlan
    from fourfold.serving.smoke import SmokeReport

_Server = Annotated[str | None, typer.Option(help="vllm or vllm-cpu; this machine's by default.")]
_Options = Annotated[list[str] | None, typer.Option(help="Further option of the server, KEY=VALUE.")]
_Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def serve(
    checkpoint: Annotated[str, typer.Argument(help="'demo', a folder, or a hub id.")],
    extra: Annotated[list[str] | None, typer.Argument(help="After --: flags for vLLM as they stand.")] = None,
    port: Annotated[int | None, typer.Option(help="Port, 8888; 0 takes a free one.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on, 127.0.0.1; 0.0.0.0 for all.")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="What requests call it; the folder's name.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Longest context; the most that fits.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Streams at once.")] = None,
    kv_cache_dtype: Annotated[str | None, typer.Option(help="auto, bfloat16 or fp8; chosen for the GPU.")] = None,
    tensor_parallel: Annotated[int | None, typer.Option(help="GPUs of one machine; the fewest that hold it.")] = None,
    expert_parallel: Annotated[
        bool | None, typer.Option("--expert-parallel/--no-expert-parallel", help="Whole experts on each GPU.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Machines, joined by Ray.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Plan for this GPU, such as gb10 or h200.")] = None,
    emulation: Annotated[str | None, typer.Option(help="auto, on or off: NVFP4 in plain torch.")] = None,
    activations: Annotated[str | None, typer.Option(help="Of the emulation: nvfp4 or none (W4A16).")] = None,
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="No compilation, no graphs.")] = False,
    server: _Server = None,
    option: _Options = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command with its reasons.")] = False,
    docker: Annotated[bool, typer.Option("--docker", help="Print the docker command with its reasons.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Ask it text, pictures and clips, then stop.")] = False,
    json: _Json = False,
) -> int:
    """Serve a checkpoint with vLLM, its flags chosen for the GPU, until Ctrl-C."""
    from fourfold.cli.console import print_json, progress_bar
    from fourfold.config import parse_pairs
    from fourfold.plugins import Registry, build_plugin_manager
    from fourfold.serving.foreground import plan_of, serve_until_interrupted
    from fourfold.serving.smoke import smoke as smoke_test
    from fourfold.serving.target import find_target

    given: dict[str, Any] = {
        "port": port, "host": host, "served_model_name": served_model_name, "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs, "kv_cache_dtype": kv_cache_dtype, "tensor_parallel": tensor_parallel,
        "expert_parallel": expert_parallel, "nodes": nodes, "gpu": gpu, "emulation": emulation,
        "activations": activations, "enforce_eager": enforce_eager or None, "extra": tuple(extra or ()) or None,
    }  # fmt: skip
    options = {key: value for key, value in given.items() if value is not None} | parse_pairs(option or [])
    target = find_target(checkpoint, Registry(build_plugin_manager()), server=server, options=options)
    if dry_run or docker:
        plan = plan_of(target, docker=docker)
        if json:
            print_json(plan)
        else:
            _print_plan(plan, docker=docker)
        return 0
    with progress_bar(quiet=json) as progress:
        if not smoke:
            return serve_until_interrupted(target, progress)
        with target.open(progress) as endpoint:
            report = smoke_test(endpoint, progress)
    _print_smoke(report, json=json)
    return 0 if report.ok else 1


def smoke(
    model: Annotated[str, typer.Argument(help="Address of a server, or a checkpoint to serve for the test.")],
    modality: Annotated[list[str] | None, typer.Option(help="text, image or video; all by default.")] = None,
    count: Annotated[int, typer.Option(help="Questions in each modality.", min=1)] = 4,
    served_model_name: Annotated[str | None, typer.Option(help="Model to ask, where several are served.")] = None,
    server: _Server = None,
    option: _Options = None,
    json: _Json = False,
) -> int:
    """Ask a served model text, pictures and clips, as single replies and as streams."""
    from fourfold.cli.console import progress_bar
    from fourfold.config import parse_pairs
    from fourfold.plugins import Registry, build_plugin_manager
    from fourfold.serving.smoke import parse_modalities
    from fourfold.serving.smoke import smoke as smoke_test
    from fourfold.serving.target import find_target, temporary_options

    modalities = parse_modalities(modality)
    options = temporary_options(model, parse_pairs(option or []), served_model_name)
    target = find_target(model, Registry(build_plugin_manager()), server=server, options=options)
    with progress_bar(quiet=json) as progress, target.open(progress) as endpoint:
        report = smoke_test(endpoint, progress, modalities=modalities, count=count)
    _print_smoke(report, json=json)
    return 0 if report.ok else 1


def bench(
    model: Annotated[str, typer.Argument(help="A checkpoint, or the address of a server.")],
    baseline: Annotated[str | None, typer.Option(help="BF16 model or address to compare with.")] = None,
    generate_tokens: Annotated[int | None, typer.Option(help="Tokens of the long generation.")] = None,
    ttft_prompt_tokens: Annotated[list[int] | None, typer.Option(help="Prompt length for TTFT; repeatable.")] = None,
    streams: Annotated[list[int] | None, typer.Option(help="Streams at once; repeatable.")] = None,
    stream_prompt_tokens: Annotated[int | None, typer.Option(help="Prompt length of a stream.")] = None,
    stream_output_tokens: Annotated[int | None, typer.Option(help="Tokens a stream generates.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Rounds that count, 3 or more.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id, where an address does not say it.")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="Model to ask, where several are served.")] = None,
    server: _Server = None,
    option: _Options = None,
    output: Annotated[Path | None, typer.Option(help="Also write the JSON here.")] = None,
    json: _Json = False,
) -> int:
    """Measure tokens/s, time to the first token, throughput, memory and size, beside a baseline's."""
    from fourfold.bench.run import bench as run_bench
    from fourfold.bench.spec import BenchSpec
    from fourfold.bench.table import rows
    from fourfold.cli.console import print_json, print_table, progress_bar
    from fourfold.config import parse_pairs
    from fourfold.plugins import Registry, build_plugin_manager
    from fourfold.serving.target import find_target, temporary_options

    given: dict[str, Any] = {
        "generate_tokens": generate_tokens, "ttft_prompt_tokens": ttft_prompt_tokens and tuple(ttft_prompt_tokens),
        "streams": streams and tuple(streams), "stream_prompt_tokens": stream_prompt_tokens,
        "stream_output_tokens": stream_output_tokens, "repeats": repeats,
    }  # fmt: skip
    spec = BenchSpec.parse({key: value for key, value in given.items() if value is not None}, where="bench")
    registry = Registry(build_plugin_manager())
    pairs = parse_pairs(option or [])
    subject, reference = (
        find_target(
            name, registry, server=server, tokenizer=tokenizer,
            options=temporary_options(name, pairs, served_model_name, streams=max(spec.streams)),
        ) if name else None
        for name in (model, baseline)
    )  # fmt: skip
    assert subject is not None  # the argument is required
    with progress_bar(quiet=json) as progress:
        report = run_bench(subject, reference, spec, progress)
    if output:
        output.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if json:
        print_json(report)
        return 0
    header, body = rows(report)
    print_table("bench: median (least to most)", header, body)
    for line in report.cuts:
        print(f"note: {line}")
    return 0


def _print_plan(plan: ServePlan, *, docker: bool) -> None:
    import shlex

    if plan.first_node:
        print(f"on the first machine:  {shlex.join(plan.first_node)}")
        print(f"on each other machine: {shlex.join(plan.other_nodes)}")
        print("then on the first machine:")
    variables = "" if docker else "".join(f"{name}={shlex.quote(value)} " for name, value in plan.environment.items())
    print(variables + shlex.join(plan.docker if docker else plan.command))
    width = max(len(reason.flag) for reason in plan.reasons)
    for reason in plan.reasons:
        print(f"  {reason.flag:<{width}}  {reason.why}")


def _print_smoke(report: SmokeReport, *, json: bool) -> None:
    from fourfold.cli.console import print_json, print_table

    if json:
        print_json(report)
        return
    body = [
        (
            check.modality, "stream" if check.streamed else "reply", f"{check.correct} of {check.asked}",
            check.error or "ok", check.example,
        )
        for check in report.checks
    ]  # fmt: skip
    print_table(f"smoke test of {report.model}", ("modality", "as", "right", "", "first answer"), body)
