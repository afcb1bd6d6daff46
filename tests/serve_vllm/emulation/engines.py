"""Runs in vLLM's environment: ``python engines.py CASES.json OUT.npz``. Several engines in turn, in one process.

A case: ``name``, ``model``, ``environment`` (of the plugin), ``eager``, ``prompts`` (token ids), ``images`` (files,
each with the text of its prompt). Written: for every case, ids and log-probabilities of the ``TOP`` likeliest tokens
at every position after the first, prompts one after the other.
"""

import gc
import json
import os
import sys

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

import numpy as np

TOP = 20
VARIABLES = ("FOURFOLD_EMULATION", "FOURFOLD_ACTIVATIONS", "FOURFOLD_INPUT_SCALE", "FOURFOLD_DECODE")


def main(cases_file, out_file):
    results = {}
    with open(cases_file) as file:
        cases = json.load(file)
    for case in cases:
        results |= {f"{case['name']}/{part}": value for part, value in run(case).items()}
        np.savez(out_file, **results)


def run(case):
    from PIL import Image
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    from fourfold_vllm.emulation import register

    for name in VARIABLES:
        os.environ.pop(name, None)
    os.environ |= case.get("environment", {})
    register()
    llm = LLM(
        model=case["model"], dtype=case.get("dtype", "float32"), enforce_eager=case.get("eager", True),
        moe_backend=case.get("moe_backend", "auto"), max_model_len=512, max_num_seqs=8,
        enable_prefix_caching=False, disable_log_stats=True,
    )  # fmt: skip
    prompts = [{"prompt_token_ids": ids} for ids in case["prompts"]]
    prompts += [
        {"prompt": item["text"], "multi_modal_data": {"image": Image.open(item["file"])}}
        for item in case.get("images", ())
    ]
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=TOP, flat_logprobs=True)
    ids, log_probs = [], []
    for output in llm.generate(prompts, params, use_tqdm=False):
        flat = output.prompt_logprobs
        for start in flat.start_indices[1:]:
            # The first is the prompt's own token, whatever its rank; then the likeliest in order.
            ids.append(flat.token_ids[start : start + TOP + 1][-TOP:])
            log_probs.append(flat.logprobs[start : start + TOP + 1][-TOP:])
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    return {"ids": np.array(ids), "log_probs": np.array(log_probs, dtype=np.float32)}


if __name__ == "__main__":
    main(*sys.argv[1:])
