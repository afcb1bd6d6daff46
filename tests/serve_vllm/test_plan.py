"""What would be run, and why: decided from a config and a name, before anything is loaded."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from fourfold.errors import CheckpointError, ConfigError, DeviceError
from fourfold.hardware import GPUS
from fourfold_vllm.options import VllmOptions
from fourfold_vllm.server import VllmCpuServer, VllmServer
from serve_vllm.full_size import COMPRESSED, NVFP4, write_checkpoint

#: The flags of the published command for the DGX Spark, by its model card.
PUBLISHED = shlex.split(
    "--served-model-name gemma-4 --host 0.0.0.0 --port 8888 --quantization modelopt --dtype auto --kv-cache-dtype fp8 "
    "--gpu-memory-utilization 0.85 --max-model-len 262144 --max-num-seqs 4 --moe-backend marlin --trust-remote-code"
)


def plan(checkpoint, **options):
    return VllmServer(VllmOptions.parse(options, where="server")).plan(checkpoint)


def flags(words) -> dict[str, str | None]:
    """A command's flags; a switch has None."""
    found: dict[str, str | None] = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            found[word] = None if following.startswith("--") else following
    return found


def why(plan_, start: str) -> str:
    (reason,) = [reason.why for reason in plan_.reasons if reason.flag.startswith(start)]
    return reason


def test_the_published_command_comes_out_for_a_dgx_spark(full_size):
    ours = plan(full_size, gpu="gb10", served_model_name="gemma-4", host="0.0.0.0")
    expected = flags(PUBLISHED)
    del expected["--trust-remote-code"]
    # The variable VLLM_NVFP4_GEMM_BACKEND=marlin is this flag since.
    assert flags(ours.command[3:]) == expected | {"--linear-backend": "marlin"}
    assert ours.command[:3] == ("vllm", "serve", str(full_size))
    assert ours.environment == {}
    assert "a checkpoint's own code is not to be run" in why(ours, "no --trust-remote-code")
    assert "--linear-backend marlin says the same" in why(ours, "no VLLM_NVFP4_GEMM_BACKEND")
    assert "load in an unpatched vLLM" in why(ours, "no mount of gemma4_patched.py")
    told = {reason.flag.split()[0] for reason in ours.reasons}
    assert set(flags(ours.command)) <= told


def test_the_docker_command_is_the_published_one_without_its_patch(full_size):
    ours = plan(full_size, gpu="gb10", served_model_name="gemma-4", host="0.0.0.0")
    assert shlex.join(ours.docker).startswith(
        "docker run -d --name vllm-gemma-4 --gpus all --ipc=host --network host "
        f"-v {full_size}:/model --entrypoint vllm vllm/vllm-openai:v0.32.0 serve /model --host 0.0.0.0"
    )
    assert ours.docker[-len(ours.command[3:]) :] == ours.command[3:]
    assert "gemma4" not in shlex.join(ours.docker)


@pytest.mark.parametrize("gpu", GPUS)
def test_every_gpu_has_a_plan_or_the_sum_that_forbids_it(full_size, gpu):
    ours = plan(full_size, gpu=gpu)
    given = flags(ours.command)
    known_wrong_or_missing = GPUS[gpu].compute_capability < (10, 0) or GPUS[gpu].compute_capability == (12, 1)
    assert (given.get("--moe-backend"), given.get("--linear-backend")) == (("marlin",) * 2 if known_wrong_or_missing
                                                                           else (None, None))  # fmt: skip
    assert (given["--kv-cache-dtype"] == "fp8") == (gpu == "gb10")
    summed = re.search(r"= ([\d.]+) GB, of ([\d.]+) GB", why(ours, "--max-model-len"))
    assert float(summed[1]) <= float(summed[2])


def test_marlin_says_that_it_leaves_activations_alone(full_size, tmp_path):
    assert "input scales are not read" in why(plan(full_size, gpu="h100"), "--moe-backend")
    weights_alone = NVFP4 | {"config_groups": {"group_0": {"weights": {"num_bits": 4}, "targets": ["Linear"]}}}
    w4a16 = write_checkpoint(tmp_path / "w4a16", weights_alone)
    assert "input scales" not in why(plan(w4a16, gpu="h100"), "--moe-backend")


def test_the_method_is_the_layouts(full_size, tmp_path):
    compressed = write_checkpoint(tmp_path / "ct", COMPRESSED)
    mixed = write_checkpoint(tmp_path / "mixed", NVFP4 | {"quant_algo": "MIXED_PRECISION"})
    bf16 = write_checkpoint(tmp_path / "bf16", None)
    found = [flags(plan(c, gpu="b200").command).get("--quantization") for c in (full_size, compressed, mixed, bf16)]
    assert found == ["modelopt", "compressed-tensors", "modelopt_mixed", None]
    assert "--moe-backend" not in flags(plan(bf16, gpu="h100").command)


def test_a_method_beside_the_config_counts_too(tmp_path):
    beside = write_checkpoint(tmp_path / "beside", NVFP4)
    config = json.loads((beside / "config.json").read_text())
    del config["quantization_config"]
    (beside / "config.json").write_text(json.dumps(config))
    (beside / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    assert flags(plan(beside, gpu="h100").command)["--moe-backend"] == "marlin"


def test_kv_scales_of_the_checkpoint_are_followed(tmp_path):
    stated = write_checkpoint(tmp_path / "kv", NVFP4 | {"kv_cache_scheme": {"num_bits": 8, "type": "float"}})
    assert flags(plan(stated, gpu="gb10").command)["--kv-cache-dtype"] == "auto"
    assert "carries the scales" in why(plan(stated, gpu="h100"), "--kv-cache-dtype")


def test_the_longest_context_is_the_longest(full_size):
    ours = plan(full_size, gpu="rtx-4090")
    longest = ours.context_tokens
    assert 8192 <= longest < 262144
    assert plan(full_size, gpu="rtx-4090", max_model_len=longest).context_tokens == longest
    with pytest.raises(DeviceError, match="does not fit GeForce RTX 4090"):
        plan(full_size, gpu="rtx-4090", max_model_len=longest + 1024)


def test_fp8_keys_and_values_make_room(full_size):
    plain = plan(full_size, gpu="rtx-4090").context_tokens
    assert plan(full_size, gpu="rtx-4090", kv_cache_dtype="fp8").context_tokens > plain


def test_a_model_too_large_is_refused_with_the_sum(tmp_path):
    bf16 = write_checkpoint(tmp_path / "gemma-bf16", None)
    with pytest.raises(DeviceError) as refusal:
        plan(bf16, gpu="rtx-5090")
    parts = re.fullmatch(
        r"gemma-bf16 does not fit GeForce RTX 5090: weights ([\d.]+) GB \+ activations and graphs ([\d.]+) GB \+ keys "
        r"and values of 2,048 tokens ([\d.]+) GB = ([\d.]+) GB, of 28.80 GB \(0.9 x 32.00 GB\); shorten the context "
        r"\(--max-model-len\), use more GPUs \(--tensor-parallel\), or quantize",
        str(refusal.value),
    )
    *terms, total = map(float, parts.groups())
    assert terms[0] == pytest.approx(50.8)
    assert sum(terms) == pytest.approx(total, abs=0.02)


def test_experts_that_cannot_be_cut_stay_whole(full_size):
    ours = plan(full_size, gpu="h100", tensor_parallel=2)
    assert "--enable-expert-parallel" in flags(ours.command)
    assert "704/2 = 352 are no multiple of the kernels' 64" in why(ours, "--enable-expert-parallel")
    assert "--enable-expert-parallel" not in flags(plan(full_size, gpu="h100").command)
    assert "--enable-expert-parallel" not in flags(plan(full_size, gpu="h100", tensor_parallel=2,
                                                        expert_parallel=False).command)  # fmt: skip


def test_experts_that_can_be_cut_are(tmp_path):
    wide = write_checkpoint(tmp_path / "wide", NVFP4, moe_intermediate_size=768)
    assert "--enable-expert-parallel" not in flags(plan(wide, gpu="h100", tensor_parallel=2).command)


def test_more_than_one_machine(full_size):
    ours = plan(full_size, gpu="gb10", nodes=2)
    given = flags(ours.command)
    assert (given["--distributed-executor-backend"], given["--pipeline-parallel-size"]) == ("ray", "2")
    assert "--tensor-parallel-size" not in given
    assert ours.first_node == ("ray", "start", "--head", "--port=6379")
    assert ours.other_nodes == ("ray", "start", "--address=FIRST_MACHINE:6379")
    assert ours.docker == ()
    assert "weights 8.29 GB (a rank's share of 16.59 GB)" in why(ours, "--max-model-len")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tensor_parallel": 3}, ConfigError, "3 does not divide 16 attention heads; these do: 1, 2, 4, 8, 16"),
        ({"expert_parallel": True}, ConfigError, "expert_parallel needs more than one GPU: give tensor_parallel too"),
        ({"max_model_len": 300000}, ConfigError, "max_model_len 300000: the model has 262144 positions"),
        ({"decode": "lazy"}, ConfigError, "are the emulation's, which is off here: set emulation on"),
    ],
)
def test_what_cannot_be_meant_is_refused(full_size, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        plan(full_size, gpu="h200", **options)


def test_emulation_on_a_gpu_takes_the_kernels_place(full_size):
    ours = plan(full_size, gpu="h200", emulation="on", activations="none")
    assert "--moe-backend" not in flags(ours.command)
    assert "--enforce-eager" in ours.command
    assert "--enforce-eager" not in plan(full_size, gpu="h200").command
    assert ours.environment == {"FOURFOLD_EMULATION": "on", "FOURFOLD_ACTIVATIONS": "none", "FOURFOLD_DECODE": "once"}
    assert ours.docker == ()
    # 47.6 GB of decoded weights do not fit 32 GB; the packed ones do.
    assert plan(full_size, gpu="rtx-5090", emulation="on").environment["FOURFOLD_DECODE"] == "lazy"


def test_emulations_settings_need_it():
    with pytest.raises(ConfigError, match="activations, input_scale_rule and decode are the emulation's"):
        VllmOptions.parse({"emulation": "off", "activations": "none"}, where="server")


def test_the_cpu_server_bounds_its_cache_and_says_what_it_cannot(demo_folder):
    ours = VllmCpuServer(VllmOptions(max_num_seqs=2)).plan(demo_folder)
    given = flags(ours.command)
    assert ours.command[:3] == ("python", "-m", "vllm.entrypoints.openai.api_server")
    assert 2**20 <= int(given["--kv-cache-memory-bytes"]) <= 2**30
    assert "--gpu-memory-utilization" not in given
    with pytest.raises(ConfigError, match="vllm-cpu: nodes and tensor_parallel are for GPUs"):
        VllmCpuServer(VllmOptions(tensor_parallel=2)).plan(demo_folder)
    with pytest.raises(DeviceError, match="the server vllm-cpu uses none; take --server vllm"):
        VllmCpuServer(VllmOptions(gpu="h100")).plan(demo_folder)


def test_flags_given_as_they_stand_come_last(full_size):
    ours = plan(full_size, gpu="h200", extra=("--max-model-len", "4096", "--hf-overrides", '{"a": 1}'))
    assert ours.command[-4:] == ("--max-model-len", "4096", "--hf-overrides", '{"a": 1}')


def test_what_is_no_checkpoint_is_refused(tmp_path, full_size):
    empty = tmp_path / "empty"
    with pytest.raises(CheckpointError, match="empty: no such folder"):
        plan(empty, gpu="h200")
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"not a checkpoint, it has no config\.json"):
        plan(empty, gpu="h200")
    (empty / "config.json").write_text((full_size / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"it has no model\.safetensors and no model\.safetensors\.index\.json"):
        plan(empty, gpu="h200")
    (empty / "model.safetensors").write_bytes((1000).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="no safetensors file, or cut off in its header"):
        plan(empty, gpu="h200")


def test_a_shard_cut_off_is_refused_before_vllm_reads_it(tmp_path):
    cut = write_checkpoint(tmp_path / "cut", NVFP4)
    weights = cut / "model.safetensors"
    whole = weights.stat().st_size
    with weights.open("r+b") as stream:
        stream.truncate(whole - 1)
    with pytest.raises(CheckpointError, match=f"cut off, it has {whole - 1:,} bytes of {whole:,}; fetch it again"):
        plan(cut, gpu="h200")


def test_another_architecture_is_refused(tmp_path):
    llama = write_checkpoint(tmp_path / "llama", NVFP4)
    config = json.loads((llama / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
    (llama / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="architecture LlamaForCausalLM; known: Gemma4ForConditionalGeneration"):
        plan(llama, gpu="h200")


def test_the_command_line_prints_command_and_reasons(cli, full_size):
    done = cli("serve", full_size, "--gpu", "gb10", "--dry-run")
    first, *reasons = done.stdout.splitlines()
    assert done.returncode == 0
    assert first.startswith(f"vllm serve {full_size} --host 127.0.0.1 --port 8888")
    assert all(line.startswith("  ") for line in reasons)
    unknown = cli("serve", full_size, "--gpu", "h250", "--dry-run")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("fourfold: unknown GPU 'h250'; known: a100")
    no_docker = cli("serve", "demo", "--docker")
    assert no_docker.returncode == 2
    assert "no docker command: the CPU server" in no_docker.stderr
