"""A study on a Ray cluster of two nodes: the same results as without, and a lost node's work is done again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fourfold.errors import ConfigError
from fourfold.progress import NoProgress
from fourfold.study import LocalExecutor, parse_needs, plan_study, run_study
from integration.cut_demo import cut_demo

from .conftest import CELLS, MakeStudy, read

# Ray reads this when it is imported: under `uv run` it would upload the workspace and wrap every worker in `uv run`.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
ray = pytest.importorskip("ray", reason="ray is not installed")
from fourfold.study.cluster import RayExecutor  # noqa: E402 - after the skip

#: Two independent quantize stages, long enough (torch is imported) that a node is lost in the middle of them.
TWO_STAGES = """
[matrix]
quantizers = [{ name = "reference", algorithm = "max" }, { name = "reference", algorithm = "mse" }]
layouts = ["modelopt"]
[calibration]
source = "demo"
samples = 4
sequence_length = 64
batch_size = 2
"""

#: The nodes have one CPU each; a quantize stage asks for as many as it has threads.
ONE_CPU = parse_needs(["quantize.cpus=1"])

HEALTH_CHECK = {"initial_delay_ms": "1000", "period_ms": "1000", "timeout_ms": "2000", "failure_threshold": "2"}


@pytest.fixture
def two_threads() -> Iterator[None]:
    """A machine with more threads than Ray gives a worker, which is one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    from ray.cluster_utils import Cluster

    # Ray's workers give way to everything else by default, which on a busy machine takes minutes.
    os.environ |= {"RAY_worker_niceness": "0"}
    # A lost node is noticed in seconds instead of most of a minute.
    os.environ |= {f"RAY_health_check_{what}": value for what, value in HEALTH_CHECK.items()}
    node = {"num_cpus": 1, "memory": 4 * 1024**3, "object_store_memory": 100 * 1024**2}
    # A head that runs nothing, as on a real cluster, so that either worker may be lost.
    cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0})
    cluster.workers = [cluster.add_node(**node) for _ in range(2)]
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def hashes(output: Path) -> dict[str, str | None]:
    return {cell.name: cell.manifest_sha256 for cell in read(output).cells}


def test_a_node_is_lost_midway_and_the_results_are_those_of_one_machine(
    cluster, two_threads, registry, make_study: MakeStudy, tmp_path: Path
):
    plan = plan_study(make_study(TWO_STAGES, model=cut_demo(tmp_path / "model")), registry)
    local = run_study(plan, registry, LocalExecutor(registry), tmp_path / "local", NoProgress())
    assert local.ok

    output = tmp_path / "shared"
    lost = []

    def lose_the_node_that_quantizes() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if len(list((output / "stages").glob(".quantize-*.partial"))) == 2:
                # The stage on the other node may end while this one goes.
                lost.append({path.name for path in (output / "stages").iterdir() if path.is_dir()})
                cluster.remove_node(cluster.workers[0], allow_graceful=False)
                return
            time.sleep(0.05)

    with RayExecutor(cluster.address, output) as executor:
        thread = threading.Thread(target=lose_the_node_that_quantizes)
        thread.start()
        results = run_study(plan, registry, executor, output, NoProgress(), needs=ONE_CPU)
        thread.join()
    assert lost, "no two quantize stages ran at once"
    assert not any(name.startswith("quantize-") for name in lost[0])
    assert (results.complete, results.ok) == (True, True)
    assert hashes(output) == hashes(tmp_path / "local")
    assert not list(output.rglob(".*.partial"))


def test_what_the_cluster_cannot_hold_is_refused_before_any_work(
    cluster, registry, make_study: MakeStudy, model: Path, tmp_path: Path
):
    text = '[recipe]\nscheme = "W4A16"\n[matrix]\nquantizers = ["reference"]\nlayouts = ["modelopt"]\n'
    plan = plan_study(make_study(text, model=model), registry)
    output = tmp_path / "out"
    needs = parse_needs(["quantize.gpus=3", "quantize.cpus=1"])
    with RayExecutor(cluster.address, output) as executor:
        message = r"no node holds 'quantize reference-max.*' \(1 CPUs, 3 GPUs, .* GB\); change it with --needs quantize"
        with pytest.raises(ConfigError, match=message):
            run_study(plan, registry, executor, output, NoProgress(), needs=needs)
        assert not (output / "checkpoints").exists()
        results = run_study(plan, registry, executor, output, NoProgress(), needs=ONE_CPU)
    assert (results.ok, [cell.name for cell in results.cells]) == (True, [CELLS[0]])


def test_no_cluster_at_the_address(tmp_path: Path):
    cluster = RayExecutor("127.0.0.1:1", tmp_path)
    with pytest.raises(ConfigError, match=r"ray: no cluster answers at '127\.0\.0\.1:1'"), cluster:
        pass


@pytest.mark.parametrize(
    "text", ["quantize.gpus", "quantize.gpus=-1", "export.cpus=1", "cell.disk=2", "tokens.cpus=nan"]
)
def test_needs_are_checked(text: str):
    with pytest.raises(
        ConfigError, match=f"needs: '{text}': give KIND.WHAT=NUMBER; KIND: tokens, quantize, cell, evaluate; WHAT: "
    ):
        parse_needs([text])


def test_needs_in_gigabytes():
    assert parse_needs(["quantize.memory=60", "quantize.gpus=0.5"]) == {
        "quantize": {"memory_bytes": 60_000_000_000, "gpus": 0.5}
    }
