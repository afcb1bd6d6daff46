"""What this member registers. Imports nothing heavy: the implementations stand as text."""

from __future__ import annotations

from fourfold.hookspecs import hookimpl
from fourfold.plugins import Entry, Environment
from fourfold_eval.options import DemoOptions, DivergenceOptions, HarnessOptions, HarnessTaskOptions, SpeedOptions

EVAL = Environment(name="eval", package="fourfold-eval", extras=("toolchain",), provides="lm_eval")

#: Demo task -> one line.
_DEMO = {
    "math": "arithmetic in words, exact answer",
    "instruct": "verifiable instructions",
    "vision": "shape and colour in a picture",
    "clip": "shape, colour and motion in a clip",
}


@hookimpl
def fourfold_register_benchmarks() -> list[Entry]:
    """lm-evaluation-harness tasks, the demo model's own, and what is measured beside answers."""
    return [
        Entry(
            name="gsm8k",
            summary="grade-school mathematics, 1,319 problems, by lm-evaluation-harness",
            options=HarnessOptions,
            implementation="fourfold_eval.harness.benchmarks:Gsm8k",
            environment=EVAL,
        ),
        Entry(
            name="ifeval",
            summary="verifiable instructions, 541 prompts, by lm-evaluation-harness",
            options=HarnessOptions,
            implementation="fourfold_eval.harness.benchmarks:IfEval",
            environment=EVAL,
        ),
        Entry(
            name="lm-eval",
            summary="any generative task of lm-evaluation-harness, as lm-eval:TASK",
            options=HarnessTaskOptions,
            implementation="fourfold_eval.harness.benchmarks:AnyTask",
            environment=EVAL,
        ),
        *(
            Entry(
                name=f"demo-{task}",
                summary=f"the demo model's held-out set: {what}",
                options=DemoOptions,
                implementation=f"fourfold_eval.demo:Demo{task.capitalize()}",
            )
            for task, what in _DEMO.items()
        ),
        Entry(
            name="kl",
            summary="divergence from the baseline on its own answers: KL, top-1 agreement",
            options=DivergenceOptions,
            implementation="fourfold_eval.divergence.benchmark:Divergence",
        ),
        Entry(
            name="size",
            summary="bytes of the checkpoint on disk",
            implementation="fourfold_eval.size:Size",
        ),
        Entry(
            name="speed",
            summary="generated tokens a second and time to the first, by the server's own measurement",
            options=SpeedOptions,
            implementation="fourfold_eval.speed:Speed",
        ),
    ]
