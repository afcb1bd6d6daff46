"""Records as evaluation, bench and sensitivity write them, with figures chosen so that every cell can be checked."""

from __future__ import annotations

from pathlib import Path

from core.sensitivity.reports import demo_report
from fourfold.bench.run import BenchReport, BenchSide, Spread
from fourfold.bench.spec import BenchSpec
from fourfold.demo import model_path
from fourfold.interfaces.server import Reason, ServePlan
from fourfold.manifest import Manifest, sha256_file
from fourfold.results import (
    Comparison,
    Direction,
    EvalRecord,
    Interval,
    Machine,
    MetricResult,
    ModelRecord,
    PairedTest,
    TaskResult,
    Verdict,
)

MACHINE = Machine(system="Linux", processor="a processor", num_cores=4, memory_bytes=8 * 10**9, gpus=("GPU Nine",))
#: label -> (BF16, NVFP4), out of 1000 prompts.
SCORES = {
    "GSM8K (flexible-extract)": (0.8779, 0.8423),
    "GSM8K (strict-match)": (0.8696, 0.8264),
    "demo-vision": (0.5, 0.5),
}


def write_everything(folder: Path) -> None:
    """One checkpoint, its evaluation, its bench and a sensitivity report, below ``folder``."""
    checkpoint = folder / "ckpt" / "tiny-NVFP4"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_bytes((model_path() / "config.json").read_bytes())
    (checkpoint / "model.safetensors").write_bytes(b"\0" * 5_000_000)
    manifest().write(checkpoint)
    record = evaluation(sha256_file(checkpoint / "manifest.json"))
    (folder / "eval").mkdir()
    (folder / "eval" / "eval.json").write_text(record.model_dump_json(), encoding="utf-8")
    (folder / "bench.json").write_text(bench().model_dump_json(), encoding="utf-8")
    demo_report().write(folder / "sensitivity.json")


def _interval(retained: float) -> Interval:
    return Interval(low=retained - 0.02, high=retained + 0.02, method="paired-bootstrap", seed=0, resamples=1000)


def manifest() -> Manifest:
    return Manifest.parse(
        {
            "kind": "checkpoint", "layout": "modelopt", "source_files": {}, "recipe": {"exclude": ["*.layers.5.mlp.*"]},
            "unfuser": {"name": "reference"}, "quantizer": {"name": "modelopt", "options": {"algorithm": "gptq"}},
            "exporter": {"name": "modelopt"}, "seed": 7,
            "calibration": {
                "spec": {"source": "demo", "samples": 64, "sequence_length": 256, "batch_size": 16, "seed": 7},
                "source_sha256": "d" * 64, "tokens_sha256": "e" * 64, "num_tokens": 16384,
            },
            "packages": {"nvidia-modelopt": "0.47.0"}, "tensors": {}, "quantized_modules": [],
            "expert_token_counts": {"model.language_model.layers.0.experts": [0, *range(1, 128)]},
            "fallbacks": [{"module": "m", "rule": "layer-max", "detail": "no token"}],
        },
        where="",
    )  # fmt: skip


def evaluation(manifest_sha256: str) -> EvalRecord:
    comparisons = [
        Comparison(
            task="gsm8k", metric=label, label=label, direction=Direction.HIGHER, unit="proportion", prompts=1000,
            baseline_score=before, score=after, difference=after - before, ratio=after / before,
            retained=after / before, retained_interval=_interval(after / before),
            test=PairedTest(name="mcnemar-exact", p_value=0.01, only_baseline=60, only_candidate=24),
            verdict=Verdict.WORSE if after < before else Verdict.NOT_SHOWN, words=f"{label}: said in words",
        )
        for label, (before, after) in SCORES.items()
    ]  # fmt: skip
    task = TaskResult(
        task="kl", label="KL", benchmark="kl", prompts=200, scored=200, prompts_sha256="f" * 64, seconds=3.0,
        metrics=(
            MetricResult(
                name="kl", label="KL divergence", direction=Direction.LOWER, unit="nats", n=9000, prompts=200,
                score=0.0123,
            ),
        ),
    )  # fmt: skip
    asked = TaskResult(
        task="gsm8k", label="GSM8K", benchmark="gsm8k", prompts=1000, scored=1000, prompts_sha256="b" * 64, seconds=5.0,
        metrics=(),
    )  # fmt: skip
    return EvalRecord(
        model=ModelRecord(
            name="tiny-NVFP4", source="x", kind="checkpoint", manifest_sha256=manifest_sha256, scheme="W4A4",
            size_bytes=5_000_000,
        ),
        baseline=ModelRecord(name="tiny", source="y", kind="checkpoint", scheme="BF16", size_bytes=15_000_000),
        machine=MACHINE, packages={"lm_eval": "0.4.13"}, started="2026-01-01T00:00:00Z", seconds=9.0, concurrency=4,
        limit=1000, limits={"kl": 200}, seed=11, tasks=(asked, task), comparisons=tuple(comparisons),
    )  # fmt: skip


def bench() -> BenchReport:
    def side(name: str, tokens_s: float, ttft_ms: float) -> BenchSide:
        def spread(label: str, unit: str, larger: bool, median: float) -> Spread:
            return Spread(
                label=label, unit=unit, larger_is_better=larger, median=median, least=median * 0.99,
                most=median * 1.01, runs=(median,) * 3,
            )  # fmt: skip

        return BenchSide(
            given=name, model=name, server_version="0.32.0", size_bytes=None, memory=None,
            command=ServePlan(
                command=("vllm", "serve", name, "--moe-backend", "marlin"), environment={"SOME": "value"},
                reasons=(Reason(flag="--moe-backend marlin", why="no FP4 here"),),
            ),
            figures=(
                spread("Tokens/s (1000-token generation)", "tokens/s", True, tokens_s),
                spread("TTFT, 1024-token prompt", "ms", False, ttft_ms),
            ),
        )  # fmt: skip

    return BenchReport(
        machine=MACHINE, packages={}, spec=BenchSpec(), cuts=(), baseline=side("tiny", 23.3, 97.0),
        subject=side("tiny-NVFP4", 48.2, 53.0),
    )  # fmt: skip
