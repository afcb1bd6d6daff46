"""Owning a process: real ones, that die, hang, leave children behind, or lose their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fourfold.errors import ServerError
from fourfold.progress import NoProgress
from fourfold_vllm.process import require_free_port, run_process, wait_ready

#: A stand-in for vLLM with a worker, and the pids of both on disk. The worker may ignore SIGTERM, as one that hangs.
SERVER = textwrap.dedent("""
    import os, signal, subprocess, sys, time
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if "deaf" in sys.argv else ""
    child = subprocess.Popen([sys.executable, "-c",
        "import signal, time; " + deaf + "print('up', flush=True); time.sleep(600)"], stdout=subprocess.PIPE)
    child.stdout.readline()
    with open(sys.argv[1] + ".part", "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    os.rename(sys.argv[1] + ".part", sys.argv[1])
    time.sleep(float(sys.argv[2]))
""")

#: Fourfold itself, as a process that can be killed: it owns a server until it ends.
OWNER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from fourfold_vllm.process import run_process
    command = (sys.executable, "-c", Path(sys.argv[1]).read_text(), sys.argv[2], "600", *sys.argv[4:])
    with run_process(command, {}, Path(sys.argv[3])):
        time.sleep(600)
""")


def python(code: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *map(str, arguments))


def read_pids(path: Path, timeout_s: float = 20) -> list[int]:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, "the server did not come up"
        time.sleep(0.1)
    return [int(word) for word in path.read_text().split()]


def gone(pid: int) -> bool:
    """Not there, and no zombie either."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "X"
    except FileNotFoundError:
        return True


def all_gone(pids: list[int], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not all(map(gone, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_leaving_the_block_ends_the_whole_group(tmp_path):
    with run_process(python(SERVER, tmp_path / "pids", 600, "deaf"), {}, tmp_path / "log"):
        pids = read_pids(tmp_path / "pids")
        assert not any(map(gone, pids))
    assert all_gone(pids, 0)


def test_an_error_in_the_block_ends_it_too(tmp_path):
    with pytest.raises(KeyboardInterrupt), run_process(python(SERVER, tmp_path / "pids", 600), {}, tmp_path / "log"):
        pids = read_pids(tmp_path / "pids")
        raise KeyboardInterrupt
    assert all_gone(pids, 0)


def test_a_server_that_ends_leaves_no_child_behind(tmp_path):
    with run_process(python(SERVER, tmp_path / "pids", 0.2), {}, tmp_path / "log") as server:
        pids = read_pids(tmp_path / "pids")
        assert server.head.wait(timeout=30) == 0
        assert all_gone(pids, 0)


@pytest.mark.parametrize(("number", "worker"), [(signal.SIGKILL, ("deaf",)), (signal.SIGTERM, ()), (signal.SIGINT, ())])
def test_whatever_ends_the_owner_ends_the_server(tmp_path, number, worker):
    """kill -9 included, where the owner cannot do anything any more."""
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    owner = subprocess.Popen(
        python(OWNER, script, tmp_path / "pids", tmp_path / "log", *worker),
        stderr=subprocess.DEVNULL,
        # A background shell hands on an ignored SIGINT; a terminal's process has it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    pids = read_pids(tmp_path / "pids")
    owner.send_signal(number)
    owner.wait(timeout=60)
    assert all_gone(pids, 30)


def test_a_killed_supervisor_takes_the_server_with_it(tmp_path):
    with run_process(python(SERVER, tmp_path / "pids", 600), {}, tmp_path / "log") as server:
        pids = read_pids(tmp_path / "pids")
        os.kill(server.head.pid, signal.SIGKILL)
        assert all_gone(pids[:1], 10)
        os.kill(pids[1], signal.SIGKILL)  # the stand-in's own child, which vLLM's would follow by itself


def test_death_while_starting_shows_the_last_30_lines(tmp_path):
    code = "import sys\nfor i in range(100): print('line', i)\nsys.exit(7)"
    with run_process(python(code), {}, tmp_path / "log") as server, pytest.raises(ServerError) as error:
        wait_ready(server, "http://127.0.0.1:9/health", 60, NoProgress())
    first, *lines = str(error.value).splitlines()
    assert first == f"vLLM did not start: it failed (exit code 7); the last 30 lines of {tmp_path / 'log'}:"
    assert lines == [f"  line {i}" for i in range(70, 100)]


def test_a_cause_further_up_is_told_first(tmp_path):
    code = "print('(EngineCore) ValueError: no such scale')\nfor i in range(60): print('line', i)\nraise SystemExit(1)"
    message = r"\(exit code 1\); first error: ValueError: no such scale; the last 30 lines of "
    with run_process(python(code), {}, tmp_path / "log") as server, pytest.raises(ServerError, match=message):
        wait_ready(server, "http://127.0.0.1:9/health", 60, NoProgress())


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL; the machine may be out of memory"),
        ("os.kill(os.getpid(), signal.SIGABRT)", "was ended by SIGABRT"),
        # The supervisor itself, which the kernel may choose as well: its end is told by the signal alone.
        ("os.kill(os.getppid(), signal.SIGKILL)", "was ended by SIGKILL; the machine may be out of memory"),
        ("sys.exit(255)", "failed (exit code 255)"),
        ("sys.exit(0)", "ended by itself (exit code 0)"),
    ],
)
def test_death_while_starting_says_how(tmp_path, code, how):
    command = python(f"import os, signal, sys\nprint('up', flush=True)\n{code}")
    with run_process(command, {}, tmp_path / "log") as server, pytest.raises(ServerError) as error:
        wait_ready(server, "http://127.0.0.1:9/health", 60, NoProgress())
    assert str(error.value) == f"vLLM did not start: it {how}; the last 1 lines of {tmp_path / 'log'}:\n  up"


def test_a_server_that_hangs_is_given_up_with_its_log(tmp_path):
    code = "import time; print('thinking', flush=True); time.sleep(600)"
    message = r"(?s)did not answer within 0\.5 s; give it more with --option timeout_s=N; the last 1 lines .*  thinking"
    with run_process(python(code), {}, tmp_path / "log") as server, pytest.raises(ServerError, match=message):
        deadline = time.monotonic() + 60
        while "thinking" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        wait_ready(server, "http://127.0.0.1:9/health", 0.5, NoProgress())


def test_what_vllm_logs_becomes_progress(tmp_path):
    log = [
        "INFO [model.py:733] Resolved architecture: Gemma4ForConditionalGeneration",
        "WARNING Enforce eager set, disabling torch.compile, CUDAGraphs",
        "INFO Starting to load model /x...",
        "INFO Loading weights took 0.14 seconds",
        "INFO Loading weights took 0.15 seconds",
        "INFO [kv_cache_utils.py:2327] GPU KV cache size: 883,011 tokens, Maximum concurrency",
    ]
    begun: list[str] = []

    class Noted(NoProgress):
        def begin(self, task, *, total, unit):
            begun.append(task)

    code = f"print({chr(10).join(log)!r}, flush=True); import time; time.sleep(1.5)"
    with run_process(python(code), {}, tmp_path / "log") as server, pytest.raises(ServerError):
        wait_ready(server, "http://127.0.0.1:9/health", 60, Noted())
    assert begun == [
        "vLLM: starting",
        "vLLM: Gemma4ForConditionalGeneration, starting the engine",
        "vLLM: loading weights",
        "vLLM: weights loaded (0.14 seconds)",
        "vLLM: KV cache of 883,011 tokens",
    ]


def test_the_server_gets_no_variable_that_would_mislead_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    with run_process(python(code), {"FOURFOLD_EMULATION": "on"}, tmp_path / "log") as server:
        server.head.wait(timeout=30)
    text = (tmp_path / "log").read_text()
    assert '"FOURFOLD_EMULATION": "on"' in text
    assert '"HF_HUB_OFFLINE": "1"' in text
    assert "PYTHONPATH" not in text
    assert "PYTHONDONTWRITEBYTECODE" not in text


def test_a_taken_port_is_refused_and_a_free_one_found():
    with subprocess.Popen(
        python("import socket; s = socket.create_server(('', 0)); print(s.getsockname()[1], flush=True); input()"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        port = int(other.stdout.readline())
        with pytest.raises(ServerError, match=f"port {port} of 127.0.0.1 cannot be taken \\(Address already in use\\)"):
            require_free_port("127.0.0.1", port)
        assert require_free_port("127.0.0.1", 0) not in (0, port)
        other.communicate("\n")


def test_a_proxy_is_not_asked_for_the_health_of_this_machine(tmp_path, monkeypatch):
    """A company's machine names a proxy for everything; here one where nobody listens."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    port = require_free_port("127.0.0.1", 0)
    (tmp_path / "health").write_text("")
    command = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path))
    with run_process(command, {}, tmp_path / "log") as server:
        wait_ready(server, f"http://127.0.0.1:{port}/health", 30, NoProgress())
