"""How many threads a stage has is part of what was asked for: set by the request, kept in the record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fourfold.config import Recipe, Scheme
from fourfold.demo import model_path
from fourfold.manifest import Component, Manifest
from fourfold.progress import NoProgress
from fourfold.stages.process import run_in_process
from fourfold.stages.request import QuantizeRequest

#: With a tensor of this size torch splits a sum, LAPACK a Cholesky factor, and oneDNN a product.
OPERATIONS = """
import json, torch
torch.manual_seed(0)
values, tokens = torch.randn(1_000_000), torch.randn(512, 704)
hessian = tokens.T @ tokens / 512 + torch.eye(704) / 100
x, w = torch.randn(333, 1408).bfloat16(), torch.randn(704, 1408).bfloat16()
def every():
    return {
        "sum": torch.stack([values[i:].sum() for i in range(16)]), "cholesky": torch.linalg.cholesky(hessian),
        "gram": tokens.T @ tokens,
        "linear": torch.nn.functional.linear(x, w), "softmax": x.float().softmax(-1),
        "mean square of rows": x.float().square().mean(-1), "amax": x.abs().amax(),
        "index_add": torch.zeros(64, 1408).index_add_(0, torch.arange(333) % 64, x.float()),
    }
torch.set_num_threads(1)
one = every()
torch.set_num_threads(2)
two = every()
print(json.dumps({name: torch.equal(one[name], two[name]) for name in one}))
"""


def request(output: Path, **changes: object) -> QuantizeRequest:
    component = Component(name="reference")
    fields: dict[str, object] = {
        "model_path": model_path(), "source_files": {}, "tokens_path": None, "tokens_sha256": None, "output": output,
        "recipe": Recipe(scheme=Scheme.W4A16, exclude=("*.experts.*",)), "unfuser": component, "quantizer": component,
        "batch_size": 1, "device": "cpu", "seed": 0,
    }  # fmt: skip
    return QuantizeRequest(**fields | changes)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_stage_has_the_threads_it_is_given_and_says_so(tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    (tmp_path / "artifact").mkdir()
    asked = request(tmp_path / "artifact", threads=threads)
    run_in_process(Path(sys.executable), asked, tmp_path / "log", NoProgress())
    assert Manifest.read(tmp_path / "artifact").threads == threads


def test_threads_decide_on_a_cpu_and_on_a_gpu_do_not(tmp_path: Path):
    one, two = (request(tmp_path, threads=threads) for threads in (1, 2))
    assert one.identity != two.identity
    assert [r.model_copy(update={"device": "cuda"}).identity.get("threads") for r in (one, two)] == [None, None]


def test_the_default_is_what_torch_would_take_here(tmp_path: Path):
    code = "from fourfold.stages.request import num_threads; print(num_threads())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True, check=True
    )
    assert done.stdout.strip() == b"2"


def test_which_operations_depend_on_the_number_of_threads():
    """What the request's docstring says; where a release changes it, the docstring and the identity can change."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core: two threads would be one")
    done = subprocess.run([sys.executable, "-c", OPERATIONS], capture_output=True, check=True)
    equal = json.loads(done.stdout)
    assert {name for name, same in equal.items() if not same} == {"sum", "cholesky"}
