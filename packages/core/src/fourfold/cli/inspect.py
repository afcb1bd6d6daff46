"""``fourfold inspect``."""

from __future__ import annotations

from typing import Annotated

import typer


def inspect(
    model: Annotated[str, typer.Argument(help="'demo', a folder, or a hub id.")],
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> int:
    """Say what a model holds and what each choice of targets would make of it."""
    from fourfold.cli.console import gigabytes, print_json, print_table, say
    from fourfold.inspect import inspect_model

    facts = inspect_model(model)
    if json:
        print_json(facts)
        return 0
    say(f"{facts.model}: {facts.num_parameters:,} parameters in {gigabytes(facts.bytes)}")
    say(f"{facts.num_layers} layers, {facts.num_experts} experts a layer, {facts.experts_per_token} a token")
    say(f"{100 * facts.fused_expert_share:.1f} % of the parameters stand in fused experts")
    rows = [
        (c.targets, f"{c.num_modules:,}", f"{100 * c.quantized_share:.1f} %", gigabytes(c.bytes), f"{c.factor:.2f} x")
        for c in facts.choices
    ]
    print_table("in NVFP4", ("targets", "modules", "of the parameters", "checkpoint", "smaller by"), rows)
    return 0
