"""On a CUDA machine: recorded kernels are those that are started one by one, and several GPUs give one GPU's amaxes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch

from fourfold.conformance.full_size import full_size_config, make_full_size
from fourfold.conformance.model import make_tokens
from fourfold.engine.calibrate import Calibration
from fourfold.engine.hidden import host_memory
from fourfold.engine.replay import Replay
from fourfold.engine.streams import OwnStream, Purpose

from .jobs import Bench, differing


@pytest.fixture
def gpu_bench(registry, tmp_path) -> Bench:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: the engine's kernels were not run")
    return make_bench(registry, tmp_path)


def make_bench(registry, folder, num_rows: int = 32, device: str = "cuda") -> Bench:
    """Four of the 26B's layers, 16 of its experts wide; 16 batches of text."""
    config = full_size_config(layers=4, experts=16, vocabulary=4096, text_only=True)
    model = make_full_size(folder / "model", config)
    return Bench(registry, model, make_tokens(num_rows=num_rows, length=256), folder, device=device)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"stream": True}, {"fuse": True}], ids=["on the device", "streamed", "fused"])
def test_replayed_is_one_by_one(gpu_bench, monkeypatch, options):
    recorded = []
    record = Replay._record
    monkeypatch.setattr(Replay, "_record", lambda self, states: recorded.append(1) or record(self, states))
    replayed = gpu_bench.quantize(**options)
    assert len(recorded) == 4
    monkeypatch.setattr(Calibration, "_replay", lambda *_: None)
    one_by_one = gpu_bench.quantize(**options)
    assert differing(replayed, one_by_one) == []
    assert replayed.manifest.expert_token_counts == one_by_one.manifest.expert_token_counts


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"fuse": True}], ids=["plain", "fused"])
def test_streamed_is_resident_though_the_last_batch_is_smaller(registry, tmp_path, options):
    """On the last GPU there is, which is not the one that a new thread begins with where there are several."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: the engine's kernels were not run")
    bench = make_bench(registry, tmp_path, num_rows=31, device=f"cuda:{torch.cuda.device_count() - 1}")
    resident = bench.quantize(**options)
    for memory in (16, 0):
        streamed = bench.quantize(stream=True, host_memory_gib=memory, **options)
        assert differing(resident, streamed) == [], memory


@pytest.mark.gpu
def test_fused_is_the_same_when_it_is_compiled_anew(registry, tmp_path, monkeypatch):
    """No kernel is chosen by a clock: neither from run to run nor between a run's first batch and its others."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: the engine's kernels were not run")
    bench, artifacts = make_bench(registry, tmp_path, num_rows=4), []
    for number in range(3):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / f"compiled-{number}"))
        torch.compiler.reset()
        artifacts += [bench.quantize(fuse=True), bench.quantize(fuse=True)]
    assert [differing(artifacts[0], other) for other in artifacts[1:]] == [[]] * 5


@pytest.mark.gpu
def test_more_layers_are_recorded_than_torch_has_streams():
    """It has 32, and another thread fetches all the time, as it does for the next layer."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: nothing was recorded")
    device, ended = torch.device("cuda"), Event()
    fetching, host, states = OwnStream(Purpose.FETCH, device), torch.ones(2**22), torch.ones(4, device="cuda")

    def fetch():
        while not ended.is_set():
            with fetching.work():
                host.to(device)

    with ThreadPoolExecutor(1) as pool:
        fetched = pool.submit(fetch)
        try:
            for _ in range(70):
                replay = Replay(lambda given: (given * 2, torch.isfinite(given).all()), device)
                results = [replay(states * number)[0] for number in range(4)]
                assert torch.equal(torch.stack(results).cpu(), torch.tensor([0.0, 2, 4, 6])[:, None].expand(4, 4))
        finally:
            ended.set()
        fetched.result()


@pytest.mark.gpu
def test_page_locked_memory_gives_as_often_as_it_says():
    """Hidden states of 16 x 1024 tokens of the 26B, 92 MB, which the allocator alone would round up to 134."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: no memory was page-locked")
    nbytes = 16 * 1024 * 2816 * 2
    memory = host_memory(2 * 2**30, pinned=True)
    assert memory.capacity(nbytes) == 22
    memory.reserve(nbytes, 30)
    memory.wait()
    taken = list(iter(lambda: memory.take(nbytes), None))
    assert len(taken) == 22
    assert all(piece.is_pinned() for piece in taken)


@pytest.mark.gpu
def test_two_gpus_are_one(gpu_bench):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device: no amax was reduced between GPUs")
    one, two = gpu_bench.quantize(), gpu_bench.quantize(processes=2)
    assert differing(one, two) == []
    assert one.manifest.expert_token_counts == two.manifest.expert_token_counts
