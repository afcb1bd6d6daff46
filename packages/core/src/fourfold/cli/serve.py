"""``fourfold serve``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.cli.smoke import ServerName, ServerOptions, print_smoke

if TYPE_CHECKING:
    from fourfold.interfaces.server import ServePlan


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
    server: ServerName = None,
    option: ServerOptions = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command with its reasons.")] = False,
    docker: Annotated[bool, typer.Option("--docker", help="Print the docker command with its reasons.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Ask it text, pictures and clips, then stop.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
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
    print_smoke(report, json=json)
    return 0 if report.ok else 1


def _print_plan(plan: ServePlan, *, docker: bool) -> None:
    import shlex

    from fourfold.cli.console import say

    if plan.first_node:
        say(f"on the first machine:  {shlex.join(plan.first_node)}")
        say(f"on each other machine: {shlex.join(plan.other_nodes)}")
        say("then on the first machine:")
    variables = "" if docker else "".join(f"{name}={shlex.quote(value)} " for name, value in plan.environment.items())
    say(variables + shlex.join(plan.docker if docker else plan.command))
    width = max(len(reason.flag) for reason in plan.reasons)
    for reason in plan.reasons:
        say(f"  {reason.flag:<{width}}  {reason.why}")
