"""A real vLLM on the demo model: text, pictures and clips, attached to, measured, killed, and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from fourfold.bench.run import bench
from fourfold.bench.spec import BenchSpec
from fourfold.bench.table import rows
from fourfold.errors import EvaluationError, ServerError
from fourfold.progress import NoProgress
from fourfold.serving.memory import group_memory
from fourfold.serving.target import attach, context_tokens, find_target
from fourfold_vllm.options import VllmOptions
from fourfold_vllm.server import VllmCpuServer


def test_the_demo_answers_in_every_modality(cli_json, demo_bf16):
    """Questions with one right answer each: a server that does not see its pictures fails this."""
    report = cli_json("smoke", demo_bf16.url)
    assert report["exit_code"] == 0, report
    found = {(check["modality"], check["streamed"]): check["correct"] for check in report["checks"]}
    assert found == {(m, s): 4 for m in ("text", "image", "video") for s in (False, True)}
    assert report["model"] == "demo"


def test_attaching_asks_what_is_served(demo_bf16):
    endpoint = attach(demo_bf16.url.removesuffix("/v1"))
    assert (endpoint.url, endpoint.model, endpoint.owned) == (demo_bf16.url, "demo", False)
    assert endpoint.root == demo_bf16.root
    assert context_tokens(endpoint) == 4096
    with pytest.raises(ServerError, match="serves demo, not gemma-4"):
        attach(demo_bf16.url, "gemma-4")


def test_a_wrong_address_says_so(cli, demo_bf16):
    with pytest.raises(EvaluationError, match="not an address such as http"):
        attach("http:///v1")
    done = cli("smoke", "http://127.0.0.1:9/v1")
    assert done.returncode == 2
    assert "http://127.0.0.1:9/v1: nothing answers there" in done.stderr
    done = cli("smoke", demo_bf16.url, "--modality", "smell")
    assert done.stderr == "fourfold: unknown modality 'smell'; known: image, text, video\n"


def test_its_port_is_refused_to_another(demo_bf16, demo_folder):
    port = int(httpx.URL(demo_bf16.url).port)
    server = VllmCpuServer(VllmOptions(port=port))
    message = rf"port {port} of 127\.0\.0\.1 cannot be taken \(Address already in use\); choose another with --port"
    with pytest.raises(ServerError, match=message), server.serve(demo_folder, NoProgress()):
        pass


def test_the_whole_group_is_counted(demo_bf16):
    """API server, engine core and worker: more than any one of them, and less than there is."""
    memory = group_memory(demo_bf16.pid)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory.measure == "resident-peak"
    assert 10**9 < memory.num_bytes < total


def test_bench_measures_through_vllm_and_cuts_to_the_context(registry, demo_bf16):
    target = find_target(demo_bf16.url, registry, server="vllm-cpu")
    spec = BenchSpec(
        generate_tokens=24, generate_prompt_tokens=16, ttft_prompt_tokens=(64, 8192), ttft_requests=1, streams=(1, 4),
        stream_prompt_tokens=16, stream_output_tokens=8, stream_requests=1, warmups=0,
    )  # fmt: skip
    report = bench(target, None, spec, NoProgress())
    assert report.cuts == ("ttft_prompt_tokens: 8192 cut to 4094, the server's context is 4096 tokens",)
    figures = {figure.label: figure for figure in report.subject.figures}
    assert list(figures) == [
        "Tokens/s (24-token generation)", "TTFT, 64-token prompt", "TTFT, 4094-token prompt", "Throughput, 1 stream",
        "Throughput, 4 streams",
    ]  # fmt: skip
    for figure in figures.values():
        assert len(figure.runs) == 3
        assert 0 < figure.least <= figure.median <= figure.most
    # What no machine and no load can turn round: more tokens to read, or more streams at once.
    assert figures["TTFT, 4094-token prompt"].least > figures["TTFT, 64-token prompt"].least
    assert figures["Throughput, 4 streams"].most > figures["Throughput, 1 stream"].least
    header, body = rows(report)
    assert header == ("Metric", "demo")
    assert body[0][1].endswith("tokens/s")
    assert json.loads(report.model_dump_json())["spec"]["ttft_prompt_tokens"] == [64, 4094]


def test_a_real_server_that_dies_is_shown_with_its_last_words(demo_folder):
    server = VllmCpuServer(VllmOptions(port=0, extra=("--no-such-flag",)))
    with pytest.raises(ServerError) as error, server.serve(demo_folder, NoProgress()):
        pass
    first, *lines = str(error.value).splitlines()
    assert first.startswith("vLLM did not start: it failed (exit code 2); the last ")
    assert len(lines) <= 30
    assert "unrecognized arguments: --no-such-flag" in "".join(lines)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_no_orphan_is_left_of_fourfold_serve(tmp_path, number, code):
    """Ctrl-C and kill -9 while vLLM is starting: its processes go too."""
    log = tmp_path / "vllm.log"
    command = [str(Path(sys.executable).parent / "fourfold"), "serve", "demo", "--port", "0", "--option", f"log={log}"]
    owner = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    for line in owner.stderr:
        if "vLLM: starting" in line:
            break
    (head,) = _children(owner.pid)
    assert _members(head)
    owner.send_signal(number)
    assert owner.wait(timeout=60) == code
    deadline = time.monotonic() + 30
    while _members(head):
        assert time.monotonic() < deadline, "vLLM outlived fourfold serve"
        time.sleep(0.2)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _members(group: int) -> list[int]:
    """Processes of a group, zombies included."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if os.getpgid(int(folder.name)) == group:
                    found.append(int(folder.name))
            except ProcessLookupError:
                continue
    return found


@pytest.mark.gpu
def test_on_a_gpu_the_demo_is_served_with_the_kernels_of_the_plan(cli_json, tmp_path):
    """Marlin or native FP4, as planned, and the emulation: all answer the questions. Needs a CUDA GPU."""
    from fourfold.hardware import detect

    if not detect():
        pytest.skip("no NVIDIA GPU here: vLLM's NVFP4 kernels were not run")
    checkpoint = tmp_path / "nvfp4"
    cli_json("quantize", "demo", "--output", checkpoint)
    for emulation in ("off", "on"):
        report = cli_json("serve", checkpoint, "--smoke", "--port", "0", "--emulation", emulation)
        assert report["exit_code"] == 0, report
