"""The fuzz run's subject under a small budget, and what longer runs have found."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .mutate import mutate_bytes, mutate_json
from .subject import TARGETS, Subject, Target

#: Found by fuzzing: a message, or a report, with characters that no terminal and no JSON takes.
FOUND = (
    (Target("source", "model.safetensors"), b'{"x": {"dtype": "\\u001b[2J", "shape": [1], "data_offsets": [0, 1]}}'),
    (Target("checkpoint", "config.json"), b'{"model_type": "gemma4", "text_config": {"x": "\\ud800"}}'),
    (Target("checkpoint", "model.safetensors.index.json"), b'{"weight_map": {"x": ["model.safetensors"]}}'),
    (Target("checkpoint", "hf_quant_config.json"), b"{"),
)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tmp_path_factory.mktemp("fuzz") / "subject")


def test_the_subject_is_read_whole_while_nothing_is_changed(subject: Subject) -> None:
    """Otherwise mutants would be refused for what is wrong with all of them."""
    outcomes = subject.run(TARGETS[0], subject.seed(TARGETS[0]))
    assert '"ok":true' in outcomes["verify"]
    assert outcomes["open"] == "read"
    assert '"num_modules":13' in outcomes["convert"]
    assert '"equal":true' in outcomes["compare"]
    assert '"num_experts":2' in subject.run(TARGETS[-1], subject.seed(TARGETS[-1]))["inspect"]


@pytest.mark.parametrize(("target", "content"), FOUND)
def test_what_fuzzing_found(target: Target, content: bytes, subject: Subject) -> None:
    subject.run(target, content)


def test_a_linear_that_is_no_matrix(subject: Subject) -> None:
    """Found by fuzzing: an IndexError, in a header that is otherwise sound."""
    target = Target("source", "model.safetensors")
    header = json.loads(subject.seed(target))
    entry = header["model.language_model.layers.0.mlp.up_proj.weight"]
    entry["shape"] = [math.prod(entry["shape"])]
    assert "a linear's is [out, in]" in subject.run(target, json.dumps(header).encode(), ("inspect",))["inspect"]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(target=st.sampled_from(TARGETS), seed=st.integers(0, 2**32), raw=st.booleans())
def test_no_mutant_is_a_crash(target: Target, seed: int, raw: bool, subject: Subject) -> None:
    rng = random.Random(seed)
    content = (mutate_bytes if raw else mutate_json)(subject.seed(target), rng)
    names = subject.command_names(target)
    subject.run(target, content, (names[seed % len(names)],))
