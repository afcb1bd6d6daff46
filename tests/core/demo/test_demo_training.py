"""The training script: schedule, router watch, buffers that learn, and a resumed run equal to an uninterrupted one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fourfold.demo import check_model_folder, model_path
from fourfold.demo.batches import make_batch
from fourfold.demo.initialisation import build_model
from fourfold.demo.optimizer import MasterAdamW, trainable_tensors
from fourfold.demo.recipe import Recipe
from fourfold.demo.routing import RouterWatch, watch_routers
from fourfold.demo.training import CHECKPOINT, Pace, Trainer, run

TINY = Recipe(
    num_steps=3, warmup_steps=1, problems_per_step={"math": 1, "instruct": 1, "prose": 1, "vision": 1}, row_tokens=256
)
PACE = Pace(validation_count=0, checkpoint_every=100)


def weights_hash(folder: Path) -> str:
    shards = sorted(folder.glob("*.safetensors"))
    assert shards
    return hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()


def test_a_resumed_run_gives_the_uninterrupted_runs_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert run(TINY, whole, PACE, device="cpu")
    assert not run(TINY, parted, replace(PACE, minutes=0.0), device="cpu")
    assert "stopped at step 1 of 3; continue with --resume" in capsys.readouterr().err
    assert not list(parted.glob("*.safetensors")), "an unfinished run must leave no model behind"
    assert run(TINY, parted, PACE, device="cpu", resume=True)
    assert weights_hash(whole) == weights_hash(parted)
    check_model_folder(whole)
    assert max(path.stat().st_size for path in whole.glob("*.safetensors")) <= 12_000_000
    report = json.loads((whole / "training.json").read_text())
    assert report["curve"][-1]["step"] == 3
    assert report["recipe"]["num_steps"] == 3
    assert all(row["mean"] * 128 == report["tokens_per_expert"][0]["mean"] * 128 for row in report["tokens_per_expert"])


def test_resuming_needs_a_checkpoint_of_the_same_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.pt: no checkpoint to resume from; train without --resume first"):
        run(TINY, tmp_path, PACE, device="cpu", resume=True)
    Trainer(TINY, tmp_path, torch.device("cpu")).save_checkpoint()
    with pytest.raises(ValueError, match=rf"{CHECKPOINT}: made with another recipe"):
        run(replace(TINY, seed=1), tmp_path, PACE, device="cpu", resume=True)


def test_stored_buffers_and_every_parameter_learn(tmp_path: Path) -> None:
    trainer = Trainer(replace(TINY, problems_per_step={**TINY.problems_per_step, "clip": 1}, row_tokens=512), tmp_path,
                      torch.device("cpu"))  # fmt: skip
    before = {name: tensor.detach().clone() for name, tensor in trainable_tensors(trainer.model).items()}
    assert {"model.language_model.layers.0.layer_scalar", "model.vision_tower.std_scale"} <= set(before)
    masters = {name: master.clone() for name, master in trainer.optimizer.state()["masters"].items()}
    with watch_routers(trainer.model) as watch:
        losses = trainer.train_step(make_batch(trainer.batch_recipe(), 0), watch)
    assert losses["loss"] == pytest.approx(7.6, abs=0.6), "an untrained model is about as good as ln(2048)"
    still = {
        name for name, master in trainer.optimizer.state()["masters"].items() if torch.equal(master, masters[name])
    }
    assert not still


def test_the_model_computes_with_the_rounded_masters() -> None:
    model = build_model(TINY, torch.device("cpu"))
    optimizer = MasterAdamW(model, TINY)
    tensors = trainable_tensors(model)
    for tensor in tensors.values():
        tensor.grad = torch.ones_like(tensor)
    norm = optimizer.step(0)
    assert norm == pytest.approx(sum(t.numel() for t in tensors.values()) ** 0.5, rel=1e-3)
    for name, master in optimizer.state()["masters"].items():
        assert torch.equal(tensors[name], master.to(torch.bfloat16))
        assert tensors[name].grad is None


def test_learning_rate_warms_up_holds_and_falls_to_zero() -> None:
    recipe = Recipe(num_steps=1000, warmup_steps=100, decay_share=0.4, peak_learning_rate=1.0)
    rates = [recipe.learning_rate(step) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[99] == rates[599] == 1.0
    assert rates[800] == pytest.approx(0.5)
    assert rates[1000] == 0.0
    assert rates == sorted(rates[:100]) + rates[100:600] + sorted(rates[600:], reverse=True)


def test_the_committed_weights_were_made_with_the_recipe_in_the_code() -> None:
    report = json.loads((model_path() / "training.json").read_text())
    ours = json.loads(json.dumps({k: dict(v) if hasattr(v, "items") else v for k, v in vars(Recipe()).items()}))
    assert report["recipe"] == ours
    assert report["curve"][-1]["step"] == Recipe().num_steps
    assert report["seconds"] <= 20 * 60


@pytest.mark.parametrize(("chosen", "loss"), [([0, 1, 2, 3], 1.0), ([0, 0, 0, 0], 2.8)])
def test_the_balance_loss_is_one_when_even_and_grows_when_not(chosen: list[int], loss: float) -> None:
    watch = RouterWatch(num_layers=1, num_experts=4, device=torch.device("cpu"))
    watch.start_pass(torch.tensor([True] * 4 + [False]))
    probabilities = torch.full((5, 4), 0.25) if loss == 1.0 else torch.tensor([[0.7, 0.1, 0.1, 0.1]]).repeat(5, 1)
    watch.record(0, probabilities, torch.tensor([*chosen, 3])[:, None])
    assert watch.balance_loss() == pytest.approx(loss)
    assert watch.counts_LE.tolist() == [[chosen.count(expert) for expert in range(4)]], "padding counts for nothing"
    watch.pause()
    watch.record(0, probabilities, torch.tensor([*chosen, 3])[:, None])
    assert watch.counts_LE.sum() == 4


def test_watching_needs_routers() -> None:
    with (
        pytest.raises(ValueError, match=r"the model has no Gemma 4 router to watch"),
        watch_routers(torch.nn.Linear(2, 2)),
    ):
        pass
