"""``fourfold verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fourfold.interfaces.load_check import LoadReport
    from fourfold.progress import Progress
    from fourfold.verify import VerifyReport


def verify(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of an NVFP4 checkpoint, of either layout.")],
    source: Annotated[str | None, typer.Option(help="The unquantized model: 'demo', a folder, or a hub id.")] = None,
    load: Annotated[bool, typer.Option("--load", help="Also let a server load it, and see what it drops.")] = False,
    server: Annotated[str | None, typer.Option(help="For --load; default: this machine's.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> int:
    """Check a checkpoint's values against the rules a server relies on."""
    from fourfold.cli.console import print_json, progress_bar
    from fourfold.errors import RuleError
    from fourfold.models.resolve import resolve_model
    from fourfold.verify import verify_checkpoint

    source_path = resolve_model(source) if source else None
    with progress_bar(quiet=json) as progress:
        failure = None
        try:
            report = verify_checkpoint(checkpoint, source=source_path, progress=progress)
        except RuleError as error:
            report, failure = error.report, error
        if load and failure is None:
            report = _with_load(report, checkpoint, server, progress)
    if json:
        print_json(report)
    else:
        print_report(report)
    if failure is not None:
        raise failure
    return 0 if report.ok else 1


def _with_load(report: VerifyReport, checkpoint: Path, server: str | None, progress: Progress) -> VerifyReport:
    from fourfold.plugins import Registry, build_plugin_manager
    from fourfold.serving.target import choose_server
    from fourfold.stages.load_check import check_load

    load = check_load(choose_server(Registry(build_plugin_manager()), server), checkpoint, progress)
    return report.model_copy(update={"load": load, "ok": report.ok and load.ok})


def print_report(report: VerifyReport) -> None:
    """Findings one by one with why a server cares, or what was looked at and found right."""
    from fourfold.cli.console import say
    from fourfold.verify import get_rule

    for finding in report.findings:
        doubt = "doubt: " if get_rule(finding.rule).is_doubt else ""
        say(f"{doubt}{finding.rule} {finding.tensor}: {finding.message}")
        say(f"  found {finding.found}; expected {finding.expected}")
        say(f"  why it matters: {get_rule(finding.rule).why}")
    checks, rules = sum(report.checked.values()), sum(count > 0 for count in report.checked.values())
    found = sum(report.num_findings.values())
    if not found and not report.ok and report.load is None:
        say(f"not verified, though nothing was found: {checks:,} checks of {rules} rules, and a rule that failed")
    elif not found:
        say(f"verified: {checks:,} checks of {rules} rules, nothing found")
    elif all(get_rule(rule).is_doubt for rule in report.num_findings):
        say(f"verified with {found:,} doubts, nothing wrong: {checks:,} checks of {rules} rules; let scores decide")
    else:
        say(f"not right: {found:,} findings in {checks:,} checks of {rules} rules")
    if report.num_transformed:
        say(f"{report.num_transformed:,} modules were transformed before rounding, and compared under their factors")
    for warning in report.warnings:
        say(f"warning: {warning}")
    for reason in sorted(set(report.skipped.values())):
        count = sum(value == reason for value in report.skipped.values())
        say(f"{count} rules not checked: {reason}")
    if report.load is not None:
        _print_load(report.load)


def _print_load(load: LoadReport) -> None:
    from fourfold.cli.console import say

    for finding in load.findings:
        say(f"{finding.rule} {finding.tensor}: {finding.message}")
        say(f"  why it matters: {finding.rule.why}")
    what = f"{load.num_keys:,} keys into {load.num_parameters:,} parameters of {load.num_elements:,} elements"
    if load.ok:
        say(f"loaded by {load.server}: {what}, every one accounted for")
    else:
        say(f"not loaded right by {load.server}: {sum(load.num_findings.values()):,} findings ({what})")
    for note in load.notes:
        say(f"note: {note}")
