"""Calibration by several processes, each with its share of the batches: ``torchrun`` starts them.

Every process holds the whole model on its device and runs every N-th batch; then largest values are reduced by
maximum and counts by sum. Batches are those of one process, and neither reduction rounds, so the result is one
process's to the last bit.

By hand, over several hosts too: ``torchrun ... -m fourfold.engine.distributed REQUEST``, where REQUEST is the JSON of a
:class:`Request`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import distributed

from fourfold.calibration import TokenSet
from fourfold.checkpoint.reader import TensorReader
from fourfold.config import Config
from fourfold.engine.calibrate import Calibration
from fourfold.engine.model import LayerwiseModel
from fourfold.engine.observations import LayerObservations
from fourfold.errors import FourfoldError, QuantizationError, StageError
from fourfold.supervisor import how_ended

if TYPE_CHECKING:
    from fourfold.interfaces.quantizer import QuantizeJob
    from fourfold.progress import Progress

_LOG_TAIL_LINES = 15
#: How torchrun of torch 2.13 names the process that died first; a signal's number is negative.
_FAILED = re.compile(r"failed \(exitcode: (?P<code>-?\d+)\) local_rank: (?P<rank>\d+)")
_REFUSED = 3


class Request(Config):
    """What one calibration is asked to do; ``device`` is ``cpu`` or ``cuda``."""

    model_path: Path
    tokens_path: Path
    batch_size: int
    device: str
    attention: str
    fuse: bool = False
    output: Path


def batches_of(tokens: TokenSet | None, batch_size: int) -> list[Mapping[str, torch.Tensor]]:
    """A token set as the model's arguments, batch by batch."""
    if tokens is None:
        raise QuantizationError("this job has no calibration tokens")
    return tokens.model_inputs(batch_size)


def processes_for(asked: int, device: str) -> int:
    """How many processes calibrate: with ``auto`` one a GPU."""
    return torch.cuda.device_count() if device == "auto" else asked


def calibrate_in_processes(
    job: QuantizeJob, attention: str, fuse: bool, processes: int, progress: Progress
) -> list[LayerObservations]:
    """Every layer's observations. Raises :class:`StageError` with the end of the log when a process died."""
    from safetensors.torch import load_file

    if job.tokens is None:
        raise QuantizationError("this job has no calibration tokens")
    progress.begin(f"calibrate in {processes} processes", total=None, unit="batch")
    with tempfile.TemporaryDirectory(prefix="fourfold-") as name:
        folder = Path(name)
        job.tokens.save(folder / "tokens")
        request = Request(
            model_path=job.model_path,
            tokens_path=folder / "tokens",
            batch_size=job.batch_size,
            device="cpu" if job.device == "cpu" else "cuda",
            attention=attention,
            fuse=fuse,
            output=folder / "observations.safetensors",
        )
        (folder / "request.json").write_text(request.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += ["-m", "fourfold.engine.distributed", str(folder / "request.json")]
        # One thread is what the launcher takes too where nothing is said, with a banner in the log.
        variables = {"OMP_NUM_THREADS": "1", **os.environ}
        with (folder / "log").open("wb") as log:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=variables, check=False)
        if done.returncode:
            raise StageError(_why(folder / "log"))
        return split_layers(load_file(request.output), job.gemma.num_layers)


def split_layers(tensors: Mapping[str, torch.Tensor], num_layers: int) -> list[LayerObservations]:
    """The layers of a file that :func:`calibrate` wrote."""
    layers: list[dict[str, torch.Tensor]] = [{} for _ in range(num_layers)]
    for name, tensor in tensors.items():
        layer, _, inner = name.partition(":")
        layers[int(layer)][inner] = tensor
    return [LayerObservations.from_tensors(layer) for layer in layers]


def calibrate(request: Request, rank: int, world: int, device: torch.device) -> dict[str, torch.Tensor]:
    """This process's share, reduced with the others': every layer's observations by ``LAYER:NAME``."""
    from fourfold.checkpoint.index import TensorFolder
    from fourfold.models.gemma4 import read_gemma4
    from fourfold.progress import NoProgress

    source = TensorFolder(request.model_path)
    gemma = read_gemma4(source)
    batches = batches_of(TokenSet.load(request.tokens_path), request.batch_size)
    if len(batches) < world:
        raise QuantizationError(
            f"{len(batches)} calibration batches for {world} processes; lower --batch-size or use fewer processes"
        )
    reader = TensorReader(source)
    model = LayerwiseModel(
        request.model_path, reader, tuple(source.tensors), str(device), request.attention, fuse=request.fuse
    )
    own = range(rank, len(batches), world)
    calibration = Calibration(model, gemma, [batches[number] for number in own], NoProgress(), numbers=own)
    merged: dict[str, torch.Tensor] = {}
    for layer in calibration.layers():
        for name, tensor in layer.observations.tensors().items():
            reduced = tensor.to(device)
            operation = distributed.ReduceOp.SUM if name == "tokens" else distributed.ReduceOp.MAX
            distributed.all_reduce(reduced, operation)
            merged[f"{layer.index}:{name}"] = reduced.cpu()
    return merged


def main(arguments: list[str]) -> int:
    """One process of several; the first writes the result."""
    from safetensors.torch import save

    request = Request.model_validate_json(Path(arguments[0]).read_bytes())
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu")
    if request.device == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("gloo" if request.device == "cpu" else "nccl")
    try:
        merged = calibrate(request, rank, world, device)
        if rank == 0:
            # Not save_file: what the system refuses (a full disk) would be no OSError there.
            request.output.write_bytes(save(merged))
        distributed.barrier()
    except FourfoldError as error:
        print(f"fourfold: {error}", file=sys.stderr, flush=True)
        return _REFUSED
    finally:
        distributed.destroy_process_group()
    return 0


def _why(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    own = [line.removeprefix("fourfold: ") for line in lines if line.startswith("fourfold: ")]
    if own:
        return own[0]
    # The launcher names the first that died in one line of a page of its own, which comes last.
    launcher = next((place for place, line in enumerate(lines) if "torch/distributed/elastic" in line), len(lines))
    found = next(filter(None, map(_FAILED.search, lines[launcher:])), None)
    how = f"process {found['rank']} {how_ended(int(found['code']))}" if found else "a process died"
    return "\n".join([f"calibration: {how}", *lines[:launcher][-_LOG_TAIL_LINES:]])


if __name__ == "__main__":
    CODE = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through the interpreter's end: twice on a busy machine a process aborted that had done its work, and a thread
    # of Gloo that gives up tensors there is known to do that (pytorch/pytorch#179291).
    os._exit(CODE)
