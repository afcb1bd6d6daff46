"""What is counted, what is cut, and which way a factor points. The server is scripted: its times are known."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest

from fourfold.bench.run import bench
from fourfold.bench.spec import BenchSpec, figures, fit
from fourfold.bench.table import rows
from fourfold.config import Options
from fourfold.errors import ConfigError
from fourfold.interfaces.server import Endpoint, LoadResult, ServePlan, Server
from fourfold.progress import NoProgress
from fourfold.serving.target import Target

SPEC = BenchSpec(generate_tokens=50, generate_prompt_tokens=10, ttft_prompt_tokens=(20, 40), streams=(1, 4))


class Scripted(Server[Options]):
    """``speed`` times as fast as the slowest; every round is slower than the one before, the first much slower."""

    def __init__(self, speed: float, context: int | None = None) -> None:
        super().__init__(Options())
        self.speed, self.context = speed, context
        self.loads: list = []

    def plan(self, checkpoint: Path) -> ServePlan:
        return ServePlan(command=("serve", str(checkpoint)), reasons=(), context_tokens=self.context)

    @contextmanager
    def serve(self, checkpoint, progress):
        yield Endpoint(url="http://127.0.0.1:9/v1", model=checkpoint.name, owned=True)

    def measure(self, endpoint, loads, progress):
        self.loads = list(loads)
        lines = len({load.model_copy(update={"seed": 0}).canonical_json() for load in loads})
        results = []
        for index, load in enumerate(loads):
            slowness = (100.0 if index < lines else 1.0 + index // lines) / self.speed
            results.append(
                LoadResult(load=load, seconds=1, output_tokens_s=100 / slowness, ttft_s=slowness, num_output_tokens=1)
            )
        return tuple(results)


def target(folder: Path, size: int, **scripted) -> Target:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(size))
    return Target(str(folder), Scripted(**scripted), folder, None)


def test_medians_leave_the_warm_up_out_and_keep_every_run(tmp_path):
    subject = target(tmp_path / "nvfp4", 10, speed=1)
    report = bench(subject, None, SPEC, NoProgress())
    speed, first, *_ = report.subject.figures
    assert speed.runs == (50, pytest.approx(100 / 3), 25)
    assert (speed.median, speed.least, speed.most) == (pytest.approx(100 / 3), 25, 50)
    assert first.runs == (2000, 3000, 4000)
    assert (first.unit, first.median) == ("ms", 3000)
    seeds = [load.seed for load in subject.server.loads]
    assert len(seeds) == len(set(seeds)) == 4 * 5


def test_a_factor_above_one_is_better_whatever_the_metric(tmp_path):
    report = bench(target(tmp_path / "nvfp4", 25, speed=2), target(tmp_path / "bf16", 100, speed=1), SPEC, NoProgress())
    header, body = rows(report)
    assert header == ("Metric", "bf16", "nvfp4", "Factor")
    factors = {row[0]: row[3] for row in body}
    assert factors == {
        "Tokens/s (50-token generation)": "2.00x", "TTFT, 20-token prompt": "2.00x", "TTFT, 40-token prompt": "2.00x",
        "Throughput, 1 stream": "2.00x", "Throughput, 4 streams": "2.00x", "Memory": "", "Model size on disk": "4.00x",
    }  # fmt: skip
    assert body[0][1] == "33.3 (25.0 to 50.0) tokens/s"
    assert body[-1][1:3] == ("0.00 MB", "0.00 MB")


def test_both_are_measured_at_what_the_shorter_context_holds(tmp_path):
    long, short = target(tmp_path / "a", 1, speed=1, context=1000), target(tmp_path / "b", 1, speed=1, context=40)
    report = bench(long, short, SPEC, NoProgress())
    assert long.server.loads == short.server.loads
    assert max(load.input_tokens + load.output_tokens for load in long.server.loads) < 40
    assert "ttft_prompt_tokens: 40 cut to 38, the server's context is 40 tokens" in report.cuts
    assert report.spec.generate_tokens == 29


@pytest.mark.parametrize("context", [4, 5, 17, 100, 4096])
def test_cut_loads_fit_and_whole_ones_are_not_cut(context):
    fitted, cuts = fit(BenchSpec(), context)
    assert all(f.load.input_tokens + f.load.output_tokens <= context for f in figures(fitted))
    again, none = fit(fitted, context)
    assert (again, none) == (fitted, ())
    assert cuts
    assert fit(BenchSpec(), 262_144) == (BenchSpec(), ())
    assert fit(BenchSpec(), None) == (BenchSpec(), ())


def test_nothing_is_measured_in_no_context():
    with pytest.raises(ConfigError, match="the server's context is 3 tokens: too short to measure anything"):
        fit(BenchSpec(), 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"repeats": 2}, r"bench\.repeats: should be greater than or equal to 3"),
        ({"streams": (0,)}, r"bench\.streams\.0: should be greater than or equal to 1"),
        ({"stream": 1}, r"bench\.stream: unknown key"),
    ],
)
def test_a_spec_that_says_too_little_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        BenchSpec.parse(given, where="bench")
