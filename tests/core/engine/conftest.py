"""A small random model with padded and full rows, and the demo model with few tokens."""

from __future__ import annotations

import pytest
import torch

from fourfold.calibration import CalibrationSpec, TokenSet, build_token_set
from fourfold.conformance.model import make_model, make_tokens
from fourfold.demo import model_path

from .jobs import Bench


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    # Four layers: only those between the first and the last both read hidden states and write them.
    return make_model(tmp_path_factory.mktemp("small") / "model", pairs=2)


@pytest.fixture
def small(registry, small_model, tmp_path):
    """Four batches; rows of the last two are padded."""
    tokens = make_tokens()
    lengths = tokens.lengths.clone()
    lengths[4:] = torch.tensor([32, 9, 17, 5])
    return Bench(registry, small_model, TokenSet(tokens.input_ids, lengths, _record(tokens, lengths)), tmp_path)


def _record(tokens, lengths):
    from fourfold.calibration.tokens import tokens_sha256

    changes = {"num_tokens": int(lengths.sum()), "tokens_sha256": tokens_sha256(tokens.input_ids, lengths)}
    return tokens.record.model_copy(update=changes)


@pytest.fixture(scope="session")
def demo(registry, tmp_path_factory):
    spec = CalibrationSpec(source="demo", samples=16, sequence_length=128, batch_size=8)
    tokens = build_token_set(spec, model_path())
    return Bench(registry, model_path(), tokens, tmp_path_factory.mktemp("demo"), batch_size=8)


@pytest.fixture(scope="session")
def demo_max(demo):
    """The engine's ``max`` on the demo."""
    return demo.quantize()
