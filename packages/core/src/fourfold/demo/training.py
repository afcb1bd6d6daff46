"""Train the demo model: ``python -m fourfold.demo.training --output DIR [--minutes M] [--resume]``.

Writes a complete model folder, ``training.json`` (recipe, curve, tokens per expert) and ``checkpoint.pt``, from which
``--resume`` continues. Takes under 20 minutes on one H100 or H200. Needs only NumPy, torch, Transformers and
tokenizers; the model is Transformers' own, its experts computed with grouped matrix products.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fourfold.checkpoint.atomic import atomic_file
from fourfold.demo.architecture import write_processor
from fourfold.demo.batches import IGNORED, TASK_NAMES, Batch, BatchRecipe, stream_batches
from fourfold.demo.evaluate import evaluate
from fourfold.demo.initialisation import build_model
from fourfold.demo.optimizer import MasterAdamW, trainable_tensors
from fourfold.demo.recipe import Recipe
from fourfold.demo.routing import RouterWatch, watch_routers
from fourfold.demo.tasks import get_task

CHECKPOINT, REPORT = "checkpoint.pt", "training.json"
#: Below the 12 MB that no file may exceed.
_MAX_SHARD = "11MB"
_LOG_EVERY = 50


class Trainer:
    """A model in training with its optimizer, router watch and curve."""

    def __init__(self, recipe: Recipe, output: Path, device: torch.device) -> None:
        from transformers import AutoProcessor

        self.recipe, self.output, self.device = recipe, output, device
        if not (output / "processor_config.json").exists():
            write_processor(output)
        self.processor = AutoProcessor.from_pretrained(output, local_files_only=True, trust_remote_code=False)
        self.model = build_model(recipe, device)
        self.optimizer = MasterAdamW(self.model, recipe)
        self.step = 0
        self.curve: list[dict[str, Any]] = []
        self.seconds = 0.0

    def batch_recipe(self) -> BatchRecipe:
        """What the batches of this run depend on."""
        return BatchRecipe(
            self.output / "tokenizer.json",
            dict(self.recipe.problems_per_step),
            self.recipe.row_tokens,
            self.recipe.seed,
        )

    def save_checkpoint(self) -> None:
        """Replace the old checkpoint."""
        state = {
            "recipe": _plain(self.recipe), "step": self.step, "curve": self.curve, "seconds": self.seconds,
            "optimizer": self.optimizer.state(),
        }  # fmt: skip
        with atomic_file(self.output / CHECKPOINT) as stream:
            torch.save(state, stream)

    def resume(self) -> None:
        """Continue from the checkpoint of the same recipe.

        Raises:
            ValueError: there is none, or it was made with another recipe.
        """
        path = self.output / CHECKPOINT
        if not path.is_file():
            raise ValueError(f"{path}: no checkpoint to resume from; train without --resume first")
        saved = torch.load(path, map_location=self.device, weights_only=True)
        if saved["recipe"] != _plain(self.recipe):
            raise ValueError(f"{path}: made with another recipe; give the same options or another --output")
        self.step, self.curve, self.seconds = saved["step"], saved["curve"], saved["seconds"]
        self.optimizer.restore(saved["optimizer"])

    def train_step(self, batch: Batch, watch: RouterWatch) -> dict[str, torch.Tensor]:
        """One optimizer step; returns losses as tensors, so that nothing waits for the device."""
        inputs, labels, tasks = model_inputs(batch, self.device)
        watch.start_pass(tasks >= 0)
        losses = self.task_losses(token_losses(self.model(**inputs).logits, labels), labels, tasks)
        weights = self.recipe.task_weights
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        loss = loss / sum(weights[name] for name in losses)
        balance = watch.balance_loss()
        torch.autograd.backward(loss + self.recipe.balance_weight * balance)
        norm = self.optimizer.step(self.step)
        self.step += 1
        shown = {"loss": loss, "balance": balance, "gradient_norm": norm}
        shown |= {f"loss_{name}": value for name, value in losses.items()}
        return {name: value.detach() for name, value in shown.items()}

    def task_losses(
        self, losses_RT: torch.Tensor, labels_RT: torch.Tensor, tasks_RT: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Each task's mean loss per labelled token; masked sums, so that nothing waits for the device."""
        means: dict[str, torch.Tensor] = {}
        for name in self.recipe.problems_per_step:
            of_task = (labels_RT != IGNORED) & (tasks_RT == TASK_NAMES.index(name))
            means[name] = (losses_RT * of_task).sum() / of_task.sum()
        return means

    def validate(self, count: int) -> dict[str, Any]:
        """Scores on the validation split: neither trained on nor the held-out test."""
        self.model.eval()
        scores: dict[str, Any] = {}
        for name in self.recipe.problems_per_step:
            problems = get_task(name).generate("validation", count)
            result = evaluate(self.model, self.processor, name, problems, batch_size=count)
            scores[name] = result["perplexity"] if name == "prose" else result["score"]
        self.model.train()
        return scores


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON would give it back."""
    content: dict[str, Any] = json.loads(
        json.dumps({name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(recipe).items()})
    )
    return content


def model_inputs(batch: Batch, device: torch.device) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """(the model's arguments, labels, tasks) on the device."""

    def send(array: Any) -> torch.Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    inputs = {
        "input_ids": send(batch.input_ids_RT),
        "position_ids": send(batch.position_ids_RT),
        "mm_token_type_ids": send(batch.mm_token_type_ids_RT),
    }
    for pixels, key, positions in (
        (batch.images_NPD, "pixel_values", "image_position_ids"),
        (batch.videos_MFPD, "pixel_values_videos", "video_position_ids"),
    ):
        if pixels.size:
            side = round(pixels.shape[-2] ** 0.5)
            rows, columns = np.divmod(np.arange(side * side), side)
            grid = send(np.stack([columns, rows], axis=-1))
            inputs[key] = send(pixels).float() / 255
            inputs[positions] = grid.expand(*pixels.shape[:-1], 2)
    return inputs, send(batch.labels_RT), send(batch.task_RT)


def token_losses(logits_RTV: torch.Tensor, labels_RT: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each label given the tokens before it, 0 where there is no label; aligned with the labels."""
    losses = torch.nn.functional.cross_entropy(
        logits_RTV[:, :-1].float().transpose(1, 2), labels_RT[:, 1:], reduction="none", ignore_index=IGNORED
    )
    return torch.nn.functional.pad(losses, (1, 0))


def save_model(trainer: Trainer) -> None:
    """Write the weights in shards, with the configuration as this module writes it."""
    for tensor in trainable_tensors(trainer.model).values():
        tensor.requires_grad_(False)
    trainer.model.save_pretrained(trainer.output, max_shard_size=_MAX_SHARD)
    for shard in trainer.output.glob("*.safetensors"):
        shard.chmod(0o644)
    write_processor(trainer.output)


def count_expert_tokens(trainer: Trainer, steps: int = 4) -> list[list[int]]:
    """Token slots by layer and expert over a few fresh training batches."""
    fresh = replace(trainer.batch_recipe(), seed=trainer.recipe.seed + 1)
    trainer.model.eval()
    with torch.no_grad(), watch_routers(trainer.model) as watch:
        for batch in stream_batches(fresh, range(steps), num_workers=0):
            inputs, _, tasks = model_inputs(batch, trainer.device)
            watch.start_pass(tasks >= 0)
            trainer.model(**inputs)
        counts: list[list[int]] = watch.counts_LE.tolist()
    return counts


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How a run goes about its recipe; none of it changes the weights."""

    minutes: float = 20.0
    workers: int = 0
    validate_every: int = 1000
    validation_count: int = 200
    """Problems of each task; 0 leaves validation out."""
    checkpoint_every: int = 500


def train(trainer: Trainer, pace: Pace) -> bool:
    """Train until the recipe's last step or the time limit; True when the recipe is finished."""
    started = time.perf_counter()
    before = trainer.seconds
    steps = range(trainer.step, trainer.recipe.num_steps)
    with watch_routers(trainer.model) as watch:
        for batch in stream_batches(trainer.batch_recipe(), steps, pace.workers):
            shown = trainer.train_step(batch, watch)
            elapsed = time.perf_counter() - started
            trainer.seconds = before + elapsed
            last = trainer.step == trainer.recipe.num_steps
            if trainer.step % _LOG_EVERY == 0 or last:
                entry: dict[str, Any] = {"step": trainer.step, "seconds": round(trainer.seconds, 1)}
                entry |= {name: round(float(value), 4) for name, value in shown.items()}
                if pace.validation_count and (trainer.step % pace.validate_every == 0 or last):
                    watch.pause()
                    entry["validation"] = trainer.validate(pace.validation_count)
                trainer.curve.append(entry)
                print(json.dumps(entry), flush=True)
            stopped = elapsed > 60 * pace.minutes and not last
            if trainer.step % pace.checkpoint_every == 0 or last or stopped:
                trainer.save_checkpoint()
            if stopped:
                return False
    return True


def write_report(trainer: Trainer) -> None:
    """``training.json``: recipe, environment, curve, tokens per expert."""
    counts = count_expert_tokens(trainer)
    report = {
        "recipe": _plain(trainer.recipe),
        "device": torch.cuda.get_device_name() if trainer.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "seconds": round(trainer.seconds, 1),
        "tokens_per_expert": [
            {"layer": layer, "min": min(row), "max": max(row), "mean": sum(row) / len(row)}
            for layer, row in enumerate(counts)
        ],
        "curve": trainer.curve,
    }
    (trainer.output / REPORT).write_text(json.dumps(report, indent=1) + "\n")


def run(recipe: Recipe, output: Path, pace: Pace, *, device: str, resume: bool = False) -> bool:
    """Train and write the model folder; False when the time limit stopped it at a checkpoint."""
    trainer = Trainer(recipe, output, torch.device(device))
    if resume:
        trainer.resume()
    if not train(trainer, pace):
        print(f"stopped at step {trainer.step} of {recipe.num_steps}; continue with --resume", file=sys.stderr)
        return False
    write_report(trainer)
    save_model(trainer)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 when the model is finished, 3 when the time limit stopped it at a checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m fourfold.demo.training", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=Pace.minutes, help="stop at a checkpoint after this long")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--steps", type=int, default=Recipe.num_steps, help="default: the recipe's")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--validate-every", type=int, default=Pace.validate_every)
    parser.add_argument("--checkpoint-every", type=int, default=Pace.checkpoint_every)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    pace = Pace(
        minutes=options.minutes, workers=options.workers, validate_every=options.validate_every,
        checkpoint_every=options.checkpoint_every,
    )  # fmt: skip
    finished = run(Recipe(num_steps=options.steps), options.output, pace, device=options.device, resume=options.resume)
    return 0 if finished else 3


if __name__ == "__main__":
    sys.exit(main())
