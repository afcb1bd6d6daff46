"""The application: every command by name."""

from __future__ import annotations

import typer

from fourfold.cli.backends import backends
from fourfold.cli.bench import bench
from fourfold.cli.compare import compare
from fourfold.cli.convert import convert
from fourfold.cli.doctor import doctor
from fourfold.cli.eval import eval as evaluate
from fourfold.cli.guard import guarded
from fourfold.cli.inspect import inspect
from fourfold.cli.plan import plan
from fourfold.cli.quantize import quantize
from fourfold.cli.report import card, report
from fourfold.cli.sensitivity import sensitivity
from fourfold.cli.serve import serve
from fourfold.cli.setup import setup
from fourfold.cli.smoke import smoke
from fourfold.cli.study import study
from fourfold.cli.verify import verify

app = typer.Typer(
    name="fourfold",
    help="Gemma 4 mixture-of-experts checkpoints to verified NVFP4.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    setup,
    doctor,
    backends,
    inspect,
    quantize,
    verify,
    compare,
    convert,
    sensitivity,
    plan,
    report,
    card,
    serve,
    smoke,
    bench,
):
    app.command(name=command.__name__)(guarded(command))
app.command(name="eval")(guarded(evaluate))
app.add_typer(study)


def main() -> None:
    """Entry point."""
    app()
