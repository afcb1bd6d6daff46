"""``fourfold bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fourfold.cli.smoke import ServerName, ServerOptions


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
    server: ServerName = None,
    option: ServerOptions = None,
    output: Annotated[Path | None, typer.Option(help="Also write the JSON here.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> int:
    """Measure tokens/s, time to the first token, throughput, memory and size, beside a baseline's."""
    from fourfold.bench.run import bench as run_bench
    from fourfold.bench.spec import BenchSpec
    from fourfold.bench.table import rows
    from fourfold.checkpoint.atomic import require_writable, write_whole
    from fourfold.cli.console import print_json, print_table, progress_bar, say
    from fourfold.config import parse_pairs
    from fourfold.plugins import Registry, build_plugin_manager
    from fourfold.serving.target import find_target, temporary_options

    given: dict[str, Any] = {
        "generate_tokens": generate_tokens, "ttft_prompt_tokens": ttft_prompt_tokens and tuple(ttft_prompt_tokens),
        "streams": streams and tuple(streams), "stream_prompt_tokens": stream_prompt_tokens,
        "stream_output_tokens": stream_output_tokens, "repeats": repeats,
    }  # fmt: skip
    spec = BenchSpec.parse({key: value for key, value in given.items() if value is not None}, where="bench")
    if output is not None:
        require_writable(output)
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
    if output is not None:
        write_whole(output, report.model_dump_json(indent=2) + "\n")
    if json:
        print_json(report)
        return 0
    header, body = rows(report)
    print_table("bench: median (least to most)", header, body)
    for line in report.cuts:
        say(f"note: {line}")
    return 0
