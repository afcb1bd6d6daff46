"""Calibration passes: every token once, counted in the first pass alone, padding under its mask."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fourfold.calibration import CalibrationSpec, TokenSet, TokenSetRecord
from fourfold.errors import QuantizationError
from fourfold_modelopt.passes import CalibrationPasses

NUM_EXPERTS = 4


class Experts(nn.Module):
    def forward(self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        return hidden


class Model(nn.Module):
    """Sends token id t to experts t and t + 1 (modulo 4) and remembers its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 2)
        self.layer = nn.ModuleDict({"experts": Experts()})
        self.calls: list[dict[str, Any]] = []

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def forward(self, input_ids: torch.Tensor, **call: Any) -> torch.Tensor:
        self.calls.append({"input_ids": input_ids, **call})
        tokens = input_ids.flatten()
        index = torch.stack((tokens % NUM_EXPERTS, (tokens + 1) % NUM_EXPERTS), dim=-1)
        return self.layer["experts"](self.embed(tokens), index, torch.ones_like(index))


class Log:
    def __init__(self) -> None:
        self.tasks: list[list[Any]] = []

    def begin(self, task: str, *, total: int | None, unit: str) -> None:
        self.tasks.append([task, total, unit, 0])

    def advance(self, amount: int = 1) -> None:
        self.tasks[-1][3] += amount

    def note(self, text: str) -> None:
        raise AssertionError(text)


@pytest.fixture
def job() -> Any:
    """Three rows, the last one short by two tokens, in batches of two."""
    rows = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [1, 1, 0, 0]], dtype=torch.int32)
    spec = CalibrationSpec(source="random", samples=3, sequence_length=4, batch_size=2)
    record = TokenSetRecord(
        spec=spec, num_texts=3, num_tokens=10, texts_sha256="", tokenizer_sha256="", tokens_sha256=""
    )
    gemma = SimpleNamespace(num_experts=NUM_EXPERTS, num_layers=1, experts_module=lambda layer: "layer.experts")
    tokens = TokenSet(rows, torch.tensor([4, 4, 2], dtype=torch.int32), record)
    return SimpleNamespace(tokens=tokens, gemma=gemma, batch_size=2)


def test_two_passes_count_once_and_leave_padding_out(job: Any) -> None:
    log, model = Log(), Model()
    passes = CalibrationPasses(job, log)
    passes.run(model)
    passes.run(model)
    # Tokens 0-7 give every expert 4; the two tokens 1 of the short row give experts 1 and 2 two more.
    assert passes.expert_tokens()[0].tolist() == [4, 6, 6, 4]
    assert log.tasks == [["calibrate", 3, "row", 3], ["calibrate, pass 2", 3, "row", 3]]


def test_the_model_gets_rows_mask_and_no_more_logits_than_one(job: Any) -> None:
    model = Model()
    CalibrationPasses(job, Log()).run(model)
    assert [call["input_ids"].tolist() for call in model.calls] == [[[0, 1, 2, 3], [4, 5, 6, 7]], [[1, 1]]]
    assert all(bool(call["attention_mask"].all()) for call in model.calls)
    assert {(call["use_cache"], call["logits_to_keep"]) for call in model.calls} == {(False, 1)}


def test_a_mixed_batch_is_masked(job: Any) -> None:
    job.batch_size = 3
    model, log = Model(), Log()
    passes = CalibrationPasses(job, log)
    passes.run(model)
    assert model.calls[0]["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert passes.expert_tokens()[0].tolist() == [4, 6, 6, 4]


def test_counts_before_a_pass_are_refused(job: Any) -> None:
    with pytest.raises(QuantizationError, match="no calibration pass was run"):
        CalibrationPasses(job, Log()).expert_tokens()


def test_no_tokens_are_refused(job: Any) -> None:
    job.tokens = None
    with pytest.raises(QuantizationError, match="this job has no calibration tokens"):
        CalibrationPasses(job, Log())
