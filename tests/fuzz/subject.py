"""What is fuzzed: a tiny good checkpoint, one of its files replaced, read by every command that reads folders.

Any outcome is right but a crash: a report, or one of our own errors with a printable one-line message.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fourfold.artifact import Artifact, ArtifactWriter
from fourfold.checkpoint.canonical import CanonicalFolder
from fourfold.checkpoint.index import INDEX_FILE, SINGLE_FILE, TensorFolder
from fourfold.checkpoint.stream import ShardWriter
from fourfold.compare import Level, compare
from fourfold.config import Recipe
from fourfold.convert import convert_checkpoint
from fourfold.errors import FourfoldError, RuleError
from fourfold.inspect import inspect_model
from fourfold.interfaces.exporter import Exporter
from fourfold.interfaces.quantizer import QuantizeJob
from fourfold.manifest import MANIFEST_FILE, sha256_files
from fourfold.models.gemma4 import read_gemma4
from fourfold.nvfp4 import quantize
from fourfold.plugins import Registry, Role, build_plugin_manager
from fourfold.progress import NoProgress
from fourfold.verify import verify_checkpoint
from fourfold.verify.checkpoint import open_checkpoint
from fourfold.verify.expected import imagine_source

SHARD, CONFIG = "model-00001-of-00002.safetensors", "config.json"


class Target(NamedTuple):
    """A file that is mutated: whole, or the header of a shard."""

    folder: str
    file: str


TARGETS = (
    Target("checkpoint", SHARD), Target("checkpoint", INDEX_FILE), Target("checkpoint", CONFIG),
    Target("checkpoint", MANIFEST_FILE), Target("checkpoint", "hf_quant_config.json"),
    Target("checkpoint", "tokenizer_config.json"), Target("source", SINGLE_FILE), Target("source", CONFIG),
)  # fmt: skip
_SIDE_FILES = {
    "tokenizer.json": '{"added_tokens": [{"id": 1, "content": "<bos>"}], "model": {"vocab": {"a": 0}}}',
    "tokenizer_config.json": '{"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>"}',
    "chat_template.jinja": "{{ messages }}",
    "processor_config.json": '{"processor_class": "Gemma4Processor"}',
    "generation_config.json": '{"eos_token_id": [1]}',
}
_TEXT = {
    "hidden_size": 32, "moe_intermediate_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_experts": 2,
    "top_k_experts": 1, "enable_moe_block": True, "vocab_size": 8, "head_dim": 16, "num_attention_heads": 1,
    "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "layer_types": ["sliding_attention"], "bos_token_id": 1,
}  # fmt: skip


class Subject:
    """The good checkpoint and its source, in ``folder``; :meth:`run` reads it with one file replaced."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._registry = folder, Registry(build_plugin_manager())
        self.source, self.checkpoint = folder / "source", folder / "checkpoint"
        self._mutants = {name: folder / f"mutant-{name}" for name in ("source", "checkpoint")}
        self._build()

    def _build(self) -> None:
        self.source.mkdir(parents=True)
        config = {
            "model_type": "gemma4", "architectures": ["Gemma4ForConditionalGeneration"], "tie_word_embeddings": True,
            "text_config": _TEXT,
        }  # fmt: skip
        for name, content in {**_SIDE_FILES, CONFIG: json.dumps(config)}.items():
            (self.source / name).write_text(content, encoding="utf-8")
        torch.manual_seed(0)
        shards = ShardWriter(self.source)
        for entry in imagine_source(config, self.source).tensors.values():
            shards.add(entry.name, torch.randn(entry.shape, dtype=torch.bfloat16) * 0.02)
        shards.finish()
        index = TensorFolder(self.source)
        gemma = read_gemma4(index)
        job = QuantizeJob(
            model_path=self.source, source=index, gemma=gemma, targets=tuple(gemma.linears.values()), recipe=Recipe(),
            tokens=None, batch_size=1, unfuser_name="none", unfuser=None, device="cpu", seed=0,
        )  # fmt: skip
        artifact = self._folder / "artifact"
        artifact.mkdir()
        writer = ArtifactWriter(artifact, job, max_shard_bytes=4096)
        for module in job.targets:
            writer.add_weight(module, quantize(module.read(index), global_scale=torch.tensor(0.1 / 2688)), 0.005)
        facts = {"unfuser": {"name": "none"}, "quantizer": {"name": "codec"}, "packages": {"fourfold": "0.1.0"}}
        writer.finish({"source_files": sha256_files(self.source), **facts})
        made = Artifact(artifact)
        self.checkpoint.mkdir()
        exporter: Exporter = self._registry.load(Role.EXPORTER, "modelopt")(
            self._registry.get(Role.EXPORTER, "modelopt").options()
        )
        exporter.export(made, self.checkpoint, NoProgress())
        self._split()
        record = {"kind": "checkpoint", "layout": "modelopt", "files": sha256_files(self.checkpoint)}
        made.manifest.model_copy(update=record).write(self.checkpoint)
        for name, mutant in self._mutants.items():
            shutil.copytree(self._folder / name, mutant)

    def _split(self) -> None:
        """Two shards, so that there is an index."""
        tensors = TensorFolder(self.checkpoint)
        values = {entry.name: tensors.read(entry.name).clone() for entry in tensors}
        tensors.close()
        (self.checkpoint / "model.safetensors").unlink()
        writer = ShardWriter(self.checkpoint, max_shard_bytes=sum(v.nbytes for v in values.values()) // 2 + 1024)
        for name, value in values.items():
            writer.add(name, value)
        if len(writer.finish()) != 2:
            raise ValueError("the subject of the fuzz run should have two shards")

    def seed(self, target: Target) -> bytes:
        """The good content of a file; of a shard, its header's JSON."""
        content = (self._folder / target.folder / target.file).read_bytes()
        is_shard = target.file.endswith(".safetensors")
        return content[8 : 8 + int.from_bytes(content[:8], "little")] if is_shard else content

    def command_names(self, target: Target) -> tuple[str, ...]:
        """The commands that read the target's folder."""
        return tuple(self._commands(target.folder))

    def run(self, target: Target, content: bytes, commands: tuple[str, ...] = ()) -> dict[str, str]:
        """Replace the file and read the folder with every command, or some; returns what each came to."""
        good, path = self._folder / target.folder / target.file, self._mutants[target.folder] / target.file
        if target.file.endswith(".safetensors"):
            whole = good.read_bytes()
            data = whole[8 + int.from_bytes(whole[:8], "little") :]
            content = len(content).to_bytes(8, "little") + content + data
        path.write_bytes(content)
        try:
            known = self._commands(target.folder)
            return {name: _outcome(known[name]) for name in commands or known}
        finally:
            shutil.copyfile(good, path)

    def _commands(self, folder: str) -> dict[str, Callable[[], Any]]:
        mutant = self._mutants[folder]
        if folder == "source":
            return {
                "open": lambda: read_gemma4(TensorFolder(mutant)),
                "inspect": lambda: inspect_model(str(mutant)),
                "verify": lambda: verify_checkpoint(self.checkpoint, source=mutant),
                "compare": lambda: compare(mutant, self.source, level=Level.BYTES, progress=NoProgress()),
            }
        return {
            "open": lambda: _open(mutant),
            "verify": lambda: verify_checkpoint(mutant, source=self.source),
            "verify alone": lambda: verify_checkpoint(mutant),
            "compare": lambda: compare(mutant, self.checkpoint, level=Level.BYTES, progress=NoProgress()),
            "convert": self._convert,
        }

    def _convert(self) -> Any:
        destination = self._folder / "converted"
        try:
            return convert_checkpoint(
                self._mutants["checkpoint"], "compressed-tensors", destination, self._registry, NoProgress()
            )
        finally:
            shutil.rmtree(destination, ignore_errors=True)


def _open(mutant: Path) -> None:
    """Headers, index and configs alone: the fastest way through the parsers."""
    checkpoint = open_checkpoint(mutant, None)
    list(checkpoint.units())
    CanonicalFolder(mutant)


def _outcome(command: Callable[[], Any]) -> str:
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            result = command()
    except RuleError:
        raise
    except FourfoldError as error:
        message = str(error)
        if not message.isprintable() or len(message) > 5000:
            raise ValueError(f"a message that cannot be shown: {message[:200]!r}") from error
        return message
    # A report has to be writable as JSON, whatever names the checkpoint has.
    return str(result.model_dump_json()) if hasattr(result, "model_dump_json") else "read"
