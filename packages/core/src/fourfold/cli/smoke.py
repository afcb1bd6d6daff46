"""``fourfold smoke``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fourfold.serving.smoke import SmokeReport

ServerName = Annotated[str | None, typer.Option(help="vllm or vllm-cpu; this machine's by default.")]
ServerOptions = Annotated[list[str] | None, typer.Option(help="Further option of the server, KEY=VALUE.")]


def smoke(
    model: Annotated[str, typer.Argument(help="Address of a server, or a checkpoint to serve for the test.")],
    modality: Annotated[list[str] | None, typer.Option(help="text, image or video; all by default.")] = None,
    count: Annotated[int, typer.Option(help="Questions in each modality.", min=1)] = 4,
    served_model_name: Annotated[str | None, typer.Option(help="Model to ask, where several are served.")] = None,
    server: ServerName = None,
    option: ServerOptions = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
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
    print_smoke(report, json=json)
    return 0 if report.ok else 1


def print_smoke(report: SmokeReport, *, json: bool) -> None:
    """A line a check, or the report itself."""
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
