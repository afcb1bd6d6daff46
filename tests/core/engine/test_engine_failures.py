"""What goes wrong says where, and what has been done is not done again."""

from __future__ import annotations

import os
import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fourfold.checkpoint.index import TensorFolder
from fourfold.engine.distributed import _why
from fourfold.engine.hidden import HiddenStates, host_memory
from fourfold.engine.lanes import StreamLane
from fourfold.engine.model import LayerwiseModel
from fourfold.errors import CheckpointError, ConfigError, DeviceError, OutputError, QuantizationError, StageError
from fourfold.progress import NoProgress
from fourfold.reference.options import ReferenceQuantizerOptions

from .jobs import differing


class Interruption(Exception):  # noqa: N818 - what Ctrl-C is, not an error
    pass


class Stopping(NoProgress):
    """Interrupts when a task begins whose name is given; keeps all names and notes."""

    def __init__(self, task=None):
        self.task, self.begun, self.notes = task, [], []

    def begin(self, task, *, total, unit):
        self.begun.append(task)
        if task == self.task:
            raise Interruption

    def note(self, text):
        self.notes.append(text)


def test_goes_on_at_the_last_finished_layer(small):
    """In the middle: it reads what another run wrote, and removes what that had read."""
    work, whole = small.work / "work", small.quantize()
    with pytest.raises(Interruption):
        small.quantize(Stopping("calibrate layer 2"), stream=True, work=str(work))
    shutil.copytree(work / "hidden" / "layer-002", work / "hidden" / "layer-001")
    again, states = Stopping(), []

    class Watching(NoProgress):
        def begin(self, task, *, total, unit):
            again.begin(task, total=total, unit=unit)
            states.append(sorted(folder.name for folder in (work / "hidden").glob("*")))

        def note(self, text):
            again.note(text)

    resumed = small.quantize(Watching(), stream=True, work=str(work))
    assert [task for task in again.begun if task.startswith("calibrate")] == ["calibrate layer 2", "calibrate layer 3"]
    assert states[:2] == [["layer-002"], ["layer-003"]]
    assert again.notes == [f"{work}: going on at layer 2"]
    assert differing(whole, resumed) == []
    assert whole.manifest.expert_token_counts == resumed.manifest.expert_token_counts


def test_work_of_another_run_is_refused(small):
    work = str(small.work / "work")
    with pytest.raises(Interruption):
        small.quantize(Stopping("calibrate layer 1"), stream=True, work=work)
    with pytest.raises(
        OutputError, match=r"holds the work of another run .* name another folder with --option work=DIR"
    ):
        small.quantize(stream=True, work=work, expert_inputs="layer")


@pytest.mark.timeout(60)
def test_a_cut_file_of_hidden_states_is_refused(tmp_path):
    states = HiddenStates(tmp_path, memory_bytes=0)
    states.write(0, torch.ones(2, 3, 4, dtype=torch.bfloat16))
    states.advance()
    assert torch.equal(states.read(0), torch.ones(2, 3, 4, dtype=torch.bfloat16))
    os.truncate(tmp_path / "layer-001" / "000000.bin", 46)
    message = r"layer-001/000000\.bin: holds 46 of 48 bytes of hidden states; remove the folder of the run's work"
    with pytest.raises(CheckpointError, match=message):
        states.read(0)


def test_a_missing_file_of_hidden_states_is_refused(tmp_path):
    states = HiddenStates(tmp_path, memory_bytes=0)
    states.write(0, torch.ones(2, 3, 4, dtype=torch.bfloat16))
    states.advance()
    (tmp_path / "layer-001" / "000000.bin").unlink()
    message = r"layer-001/000000\.bin: hidden states cannot be read \(No such file or directory\); remove the folder of"
    with pytest.raises(CheckpointError, match=message):
        states.read(0)


def test_memory_that_cannot_be_page_locked_says_so(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported at some other call")

    memory = host_memory(2**31, pinned=True)
    monkeypatch.setattr(torch, "empty", refuse)
    memory.reserve(2**20, 1)
    message = (
        r"1\.00 GiB of host memory for hidden states cannot be page-locked \(.*\); give them less with --option host"
    )
    with pytest.raises(DeviceError, match=message):
        memory.wait()


@pytest.mark.parametrize("memory_bytes", [0, 2**20], ids=["on disk", "in memory"])
def test_states_come_back_as_those_that_stay(tmp_path, memory_bytes):
    """torch.compile tells tensors made in inference mode from others; a layer is compiled for the one or the other."""
    with torch.inference_mode(), StreamLane(HiddenStates(tmp_path, memory_bytes), torch.device("cpu")) as lane:
        for batch in range(3):
            lane.put(batch, torch.full((1, 4, 8), float(batch)))
        lane.finish()
        lane.advance()
        back = [states for _, states in lane.batches(3)]
        assert [states.is_inference() for states in back] == [True, True, True]
        assert [float(states.mean()) for states in back] == [0, 1, 2]


def test_memory_gives_as_often_as_it_says():
    memory = host_memory(1000, pinned=False)
    assert memory.capacity(300) == 3
    taken = list(iter(lambda: memory.take(300), None))
    assert [len(piece) for piece in taken] == [300] * 3
    assert memory.capacity(300) == 0


def test_a_second_run_over_the_same_work_is_refused(small):
    work = small.work / "work"
    refused = []

    class Second(NoProgress):
        def begin(self, task, *, total, unit):
            if task == "calibrate layer 1":
                with pytest.raises(OutputError, match="another run is at work there; wait for it or end it") as caught:
                    small.quantize(stream=True, work=str(work))
                refused.append(str(caught.value))

    first = small.quantize(Second(), stream=True, work=str(work))
    assert refused == [f"{work}: another run is at work there; wait for it or end it"]
    assert differing(small.quantize(), first) == []


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (0, "work/hidden: the disk for hidden states is full in layer 0, batch 0; free some of it"),
        (1, "work/hidden: the disk for hidden states is full in layer 1, batch 0; free some of it"),
        (3, "work: the disk is full after layer 3; free some of it, and the same command goes on there"),
    ],
)
def test_full_disk_stops_and_goes_on(small, layer, message):
    """A limit on file size, as a full disk refuses: what the layer reads stays whole, what it wrote is gone."""
    work = small.work / "work"
    with pytest.raises(Interruption):
        small.quantize(Stopping(f"calibrate layer {layer}"), stream=True, work=str(work))
    before = sorted(path.relative_to(work) for path in work.rglob("*.*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OutputError, match=message):
            small.quantize(stream=True, work=str(work))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.relative_to(work) for path in work.rglob("*.*")) == before
    assert differing(small.quantize(), small.quantize(stream=True, work=str(work))) == []


@pytest.mark.parametrize(
    "options",
    [{}, {"stream": True}, {"stream": True, "host_memory_gib": 1.6e-5}, {"processes": 2}],
    ids=["on the device", "streamed", "in passes", "two processes"],
)
def test_nan_names_layer_and_batch(small, options, tmp_path):
    """A row of the embedding that only the last batch reads."""
    rows = small.tokens.input_ids
    (token, *_) = sorted(set(rows[6:].flatten().tolist()) - set(rows[:6].flatten().tolist()))
    small.model = _spoilt(small.model, tmp_path / "spoilt", "model.language_model.embed_tokens.weight", token)
    # Another process's error comes back as its text.
    kind = StageError if "processes" in options else QuantizationError
    with pytest.raises(kind, match="layer 0, batch 3: its output holds NaN or infinity"):
        small.quantize(**options)


@pytest.mark.parametrize(
    ("code", "said", "how"),
    [
        (-6, "terminate called without an active exception\n", "was ended by SIGABRT"),
        (-9, "", "was ended by SIGKILL; "),
    ],
)
def test_a_dead_process_is_told_of(tmp_path, code, said, how):
    """What it said last, and how it ended; not the page that the launcher adds."""
    log, elastic = tmp_path / "log", "torch/distributed/elastic/multiprocessing/api.py"
    page = f"W1128 {elastic}:1028] Sending process 28000 closing signal SIGTERM\n"
    page += (
        f"E1128 {elastic}:1002] failed (exitcode: {code}) local_rank: 1 (pid: 28001) of binary: python\n" + "=\n" * 9
    )
    log.write_text(said + page)
    assert _why(log).splitlines()[0].startswith(f"calibration: process 1 {how}")
    assert _why(log).splitlines()[1:] == said.splitlines()


def test_nan_in_a_weight_names_its_matrix(small, tmp_path):
    """In the lower half of a fused tensor: gate and up share a scale, and it is not the gate's."""
    name = "model.language_model.layers.0.experts.gate_up_proj"
    small.model = _spoilt(small.model, tmp_path / "spoilt", name, (1, 60, 3))
    with pytest.raises(QuantizationError, match=r"layers\.0\.experts\.1\.up_proj: amax must be finite"):
        small.quantize(recipe={"scheme": "W4A16"})


def _spoilt(model, folder, name, place):
    """A copy of ``model`` with NaN at a place of one tensor."""
    copy = shutil.copytree(model, folder)
    tensors = load_file(copy / "model.safetensors")
    tensors[name][place] = torch.nan
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            r"all hidden states, 0\.00 GiB, are there beside up to 3 layers, 0\.00 GiB; with --stream they wait",
        ),
        ({"stream": True}, r"ran out of memory: it held up to 3 layers, 0\.00 GiB, and a batch; lower --batch-size"),
    ],
)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate")])
def test_out_of_memory_says_what_would_fit(small, options, message, error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(LayerwiseModel, "load_layer", fail)
    with pytest.raises(DeviceError, match=message):
        small.quantize(**options)


def test_input_scales_that_lack_a_target(small):
    partial = small.quantize(recipe={"targets": "experts-only"})
    with pytest.raises(ConfigError, match=r"has no input scale of \S+self_attn.k_proj \(\d+ of the targets missing\)"):
        small.quantize(input_scales=str(partial.path))


REFUSED = {
    "kv": ({}, {"kv_cache": "fp8"}, "cpu", "stores no KV scales: use --kv-cache none"),
    "sweeps": (
        {"algorithm": "mse", "gptq_sweeps": 2},
        {},
        "cpu",
        "gptq_sweeps belongs to algorithm gptq, not mse; leave it out, or say --algorithm gptq",
    ),
    "scales of W4A16": ({"input_scales": "."}, {"scheme": "W4A16"}, "cpu", "scheme W4A16 has no input scales"),
    "no folder": ({"input_scales": "/nowhere"}, {}, "cpu", "/nowhere is no folder of a checkpoint or artifact"),
    "work": ({"work": "w"}, {}, "cpu", "only a streamed calibration leaves work to go on from; add --stream"),
    "streams": ({"processes": 2, "stream": True}, {}, "cpu", "--stream is one process: choose one of the two"),
    "sums": ({"processes": 2, "algorithm": "local-hessian"}, {}, "cpu", "use one process"),
    "both": ({"algorithm": "local-hessian", "input_scales": "."}, {}, "cpu", "leave quantizer.input_scales out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_starts(name):
    from fourfold.config import Recipe

    options, recipe, device, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        ReferenceQuantizerOptions.parse(options, where="quantizer").check(Recipe.parse(recipe, where="recipe"), device)


@pytest.mark.parametrize("options", [{}, {"stream": True}], ids=["on the device", "streamed"])
def test_one_layer_is_held(small, options):
    """Weights of other layers are not there while a layer is calibrated."""
    import gc

    def models() -> list[LayerwiseModel]:
        return [found for found in gc.get_objects() if type(found) is LayerwiseModel]

    earlier, seen = models(), []

    class Watching(NoProgress):
        def begin(self, task, *, total, unit):
            if task.startswith("calibrate layer"):
                (model,) = [found for found in models() if not any(found is other for other in earlier)]
                held = [i for i, layer in enumerate(model.layers) if not next(layer.parameters()).is_meta]
                seen.append((task, held))

    small.quantize(Watching(), **options)
    assert seen == [(f"calibrate layer {layer}", [layer]) for layer in range(4)]
    assert len(TensorFolder(small.model).tensors) > 0
