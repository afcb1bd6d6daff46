"""What every reader of a folder goes through: links, pipes, JSON that lies, patterns that never end, remote code."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.checkpoint.index import TensorFolder
from fourfold.checkpoint.layouts import COMPRESSED_TENSORS, MODELOPT
from fourfold.checkpoint.untrusted import MAX_JSON_VALUES, outside, printable, read_json
from fourfold.errors import CheckpointError, ModelError
from fourfold.inspect import inspect_model
from fourfold.verify import verify_checkpoint
from fourfold.verify.expressions import UnboundedError, compile_bounded
from fourfold.verify.shards import TensorReader, read_header

from .good_checkpoints import Editable, Variant

PACKAGES = Path(__file__).parents[3] / "packages"
#: Pieces that a regular expression is put together from.
PIECES = st.sampled_from(
    ["a", "b", r"\.", ".", "[ab]", "[^a]", r"\d", "1", ".*", ".+?", "a*", "(a|b)*", "(?:ab)+", "(a|aa)?", "b{2}",
     "a{1,3}", "^", "$", r"\w+", "|", "(a*)*"]
)  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "not valid JSON"),
        (b'{"a": 1, "a": 2}', "key 'a' stands twice in one object"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b"[" * 100_000, "nested deeper than 32 levels"),
        (b"[" * 40 + b"]" * 40, "nested deeper than 32 levels"),
        (b"[" + b"0," * MAX_JSON_VALUES + b"0]", f"over {MAX_JSON_VALUES} values"),
        (b"9" * 5000, "not valid JSON"),
    ],
)
def test_json_that_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        read_json(path)


def test_json_that_is_no_file_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not there"):
        read_json(tmp_path / "config.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_json(tmp_path / "pipe.json")
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret.json").write_text("{}", encoding="utf-8")
    (tmp_path / "inner" / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match="is a link out of its folder"):
        read_json(tmp_path / "inner" / "config.json")


def test_a_hub_snapshot_may_link_to_its_own_blobs(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text("{}", encoding="utf-8")
    (snapshot / "config.json").symlink_to(Path("../../blobs/1"))
    assert read_json(snapshot / "config.json") == {}
    (snapshot / "loop").symlink_to(snapshot / "loop")
    assert outside(snapshot / "loop", snapshot) is not None


def test_a_side_file_from_elsewhere_is_not_copied(source: Path, tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("secret", encoding="utf-8")
    folder = tmp_path / "model"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").symlink_to(tmp_path / "passwords")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: is a link out of its folder"):
        TensorFolder(folder).side_files()


def test_text_for_a_terminal() -> None:
    assert printable("\x1b[2Jx\n") == r"\x1b[2Jx\n"
    assert printable("\ud800") == r"\ud800"
    assert printable("x" * 1000, 10) == "x" * 10 + "..."


@pytest.mark.parametrize("layout", [MODELOPT.name, COMPRESSED_TENSORS.name])
def test_pipes_everywhere_do_not_block(layout: str, editable: Callable[..., Editable], source: Path) -> None:
    """With a manifest every file is hashed, with a source every side file is compared: none of it may wait."""
    folder = editable(Variant(layout), manifest=True).folder
    for path in list(folder.iterdir()):
        if path.name not in ("manifest.json", "config.json"):
            path.unlink()
            os.mkfifo(path)
    report = verify_checkpoint(folder, source=source)
    assert {"FF002", "FF011", "FF131"} <= report.num_findings.keys()


def test_a_file_exchanged_while_it_is_read(tmp_path: Path, good: Callable[[Variant], Path]) -> None:
    path = tmp_path / "model.safetensors"
    content = (good(Variant(MODELOPT.name)) / "model.safetensors").read_bytes()
    path.write_bytes(content)
    header = read_header(path)
    with TensorReader(tmp_path, {path.name: header}) as reader:
        reader.read(header.tensors[0])
        path.unlink()
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="was changed while it was read; verify it again"):
            reader.require_unchanged()
    with (
        TensorReader(tmp_path, {path.name: header}) as reader,
        pytest.raises(CheckpointError, match="was changed while it was read"),
    ):
        reader.read(header.tensors[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**12}, r"text_config\.num_hidden_layers is 1000000000000; known are 1 to 1024"),
        ({"num_experts": 10**12}, r"text_config\.num_experts is 1000000000000"),
        ({"num_experts": "many"}, r"text_config\.num_experts is missing, or no number"),
        ({"top_k_experts": True}, r"text_config\.top_k_experts is missing, or no number"),
    ],
)
def test_a_config_that_would_fill_memory(
    change: dict[str, Any], message: str, source: Path, tmp_path: Path, source_config: dict[str, Any]
) -> None:
    config = source_config | {"text_config": source_config["text_config"] | change}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        inspect_model(str(tmp_path))


@pytest.mark.parametrize("section", [[], "x", {"quant_method": "\x1b[2J"}])
def test_a_quantization_config_of_any_kind(section: object, source: Path, tmp_path: Path, source_config: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(source_config | {"quantization_config": section}))
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    with pytest.raises(ModelError, match="already quantized") as error:
        inspect_model(str(tmp_path))
    assert str(error.value).isprintable()


def test_an_adapter_in_the_source(source: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="makes loaders load another model in place of this one; remove it"):
        inspect_model(str(tmp_path))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(pieces=st.lists(PIECES, max_size=7), names=st.lists(st.text("ab.1\n", max_size=8), min_size=3, max_size=3))
def test_bounded_matching_says_what_re_says(pieces: list[str], names: list[str]) -> None:
    expression = "".join(pieces)
    try:
        expected = re.compile(expression)
    except re.error:
        with pytest.raises(ValueError, match=r"."):
            compile_bounded(expression)
        return
    matches = compile_bounded(expression)
    for name in names:
        if "\n" not in name or "$" not in expression:  # $ also holds before a last line break, which no module has
            assert matches(name) is (expected.match(name) is not None), (expression, name)


@pytest.mark.parametrize("expression", ["(a+)+$", "(a|aa)*c", ".*.*.*.*.*.*.*.*x", "(a*)*b", r"(\w+\s?)*$"])
def test_patterns_that_hang_a_backtracking_matcher(expression: str) -> None:
    start = time.process_time()
    compile_bounded(expression)("a" * 256 + "!")
    assert time.process_time() - start < 2  # re.match would take longer than the universe


@pytest.mark.parametrize("expression", [r"(a+)+\1$", "(?=a)(.*)*(.*)*x", "((a{99}){99}){99}", "a" * 2000])
def test_patterns_that_no_time_is_promised_for(expression: str) -> None:
    with pytest.raises(UnboundedError):
        compile_bounded(expression)


def test_simple_look_around_is_left_to_re() -> None:
    matches = compile_bounded("(?!.*experts).*")
    assert matches("model.layers.0.mlp")
    assert not matches("model.layers.0.experts.1")


def test_nothing_loads_remote_code_or_pickles() -> None:
    """Every from_pretrained of every package says so itself: the library's default asks at the terminal."""
    calls = []
    for path in PACKAGES.glob("*/src/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                keywords = {k.arg: k.value for k in node.keywords}
                if node.func.attr == "from_pretrained":
                    value = keywords.get("trust_remote_code")
                    calls.append((path, node.lineno))
                    assert isinstance(value, ast.Constant), f"{path}:{node.lineno} does not set trust_remote_code"
                    assert value.value is False, f"{path}:{node.lineno} trusts remote code"
                assert ast.unparse(node.func) not in ("pickle.load", "pickle.loads"), f"{path}:{node.lineno}"
                if ast.unparse(node.func) == "torch.load":
                    assert ast.unparse(keywords["weights_only"]) == "True", f"{path}:{node.lineno}"
    assert len(calls) >= 8


BOMBS = {
    "header": ("model.safetensors", b"[" + b"[]," * 16_000_000 + b"0]"),
    "config": ("config.json", b"[" + b"{}," * 16_000_000 + b"0]"),
    "wide config": ("config.json", b'{"a": "' + "\U0001f600".encode() * 12_000_000 + b'"}'),
    "manifest": ("manifest.json", b'{"tensors": {' + b",".join(b'"%d": 1' % n for n in range(900_000)) + b"}}"),
    "tokenizer": ("tokenizer.json", b'{"model": ' + b"[[]," * 5_000_000 + b"0"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_is_bounded_whatever_a_file_holds(bomb: str, good: Callable[[Variant], Path], tmp_path: Path) -> None:
    """Verifying takes no more than 1.5 GB of heap over an ordinary run, enforced by the operating system."""
    name, content = BOMBS[bomb]
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in good(Variant(MODELOPT.name)).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    head = len(content).to_bytes(8, "little") if name.endswith(".safetensors") else b""
    (folder / name).write_bytes(head + content)
    script = (
        "import resource, sys, torch; from pathlib import Path; from fourfold.verify import verify_checkpoint;"
        "used = int(open('/proc/self/statm').read().split()[5]) * 4096;"
        "resource.setrlimit(resource.RLIMIT_DATA, (used + 1500 * 2**20,) * 2);"
        "sys.exit(verify_checkpoint(Path(sys.argv[1])).ok)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
