"""What the toolchain process is asked to do. Names are those the tests look up."""

from __future__ import annotations

from typing import Any

#: Batches of two, and their length: enough for every expert, and too few for some.
ENOUGH = (4, 64)
TOO_FEW = (1, 4)
OURS, THEIRS = "reference", "llmcompressor"


def _ours(name: str, unfuser: str = OURS, tokens: tuple[int, int] | None = ENOUGH, **job: Any) -> dict[str, Any]:
    return {"name": name, "action": "quantize", "unfuser": unfuser, "tokens": tokens, **job}


def _alone(name: str, unfuser: str = THEIRS, tokens: tuple[int, int] | None = ENOUGH, **job: Any) -> dict[str, Any]:
    """llm-compressor as its documentation uses it; none of our code but, where asked for, the unfuser."""
    return {"name": f"{name}-oracle", "action": "llmcompressor", "unfuser": unfuser, "tokens": tokens, **job}


def _errors(name: str, module: str, of: tuple[str, ...]) -> dict[str, Any]:
    return {"name": name, "action": "output_errors", "tokens": ENOUGH, "module": module, "of": of}


#: Each of these is done twice: by our backend, and by llm-compressor alone under NAME + "-oracle".
IDENTITY = (
    "reference",
    "llmcompressor",
    "w4a16",
    "experts-only",
    "mixed",
    "all-experts",
    "all-experts-linearized",
    "kv-fp8",
    "mse",
    "gptq",
    "gptq-linearized",
)
ALGORITHMS = ("mse", "expanded-mse", "imatrix-mse", "expanded-imatrix", "gptq", "smoothquant", "autoround")
#: They scale rows of ``up_proj`` against columns of ``down_proj``.
SMOOTHING = ("smoothquant", "awq")
AUTOROUND = {"algorithm": "autoround", "autoround_iterations": 40}
NO_PROPAGATION = {"algorithm": "gptq", "propagate_error": False}

FIRST_RUN = [
    {"name": "inputs", "action": "inputs", "tokens": ENOUGH},
    {"name": "unfuser", "action": "unfuser"},
    _ours("reference"),
    _alone("reference", OURS),
    _ours("llmcompressor", THEIRS),
    _alone("llmcompressor"),
    _ours("w4a16", tokens=None, recipe={"scheme": "W4A16"}),
    _alone("w4a16", tokens=None, scheme="NVFP4A16"),
    _ours("experts-only", recipe={"targets": "experts-only"}),
    _alone("experts-only", pattern=r"re:.*\.experts\..*_proj$"),
    _ours("mixed", recipe={"weights_only": ["*.self_attn.*"]}),
    _alone("mixed", OURS, weights_only=r"re:.*\.self_attn\..*_proj$"),
    _ours("all-experts", options={"calibrate_all_experts": True}),
    _alone("all-experts", all_experts=True),
    _ours("all-experts-linearized", THEIRS, options={"calibrate_all_experts": True}),
    _alone("all-experts-linearized", all_experts=True),
    _ours("kv-fp8", recipe={"kv_cache": "fp8"}),
    _alone("kv-fp8", OURS, kv=True),
    _ours("mse", options={"algorithm": "mse"}),
    _alone("mse", OURS, observer="memoryless_mse"),
    _ours("expanded-mse", options={"algorithm": "expanded-mse"}),
    _ours("imatrix-mse", options={"algorithm": "imatrix-mse"}),
    _ours("expanded-imatrix", options={"algorithm": "expanded-imatrix"}),
    _ours("gptq", options={"algorithm": "gptq"}),
    _alone("gptq", OURS, gptq=True),
    _ours("gptq-linearized", THEIRS, options={"algorithm": "gptq"}),
    _alone("gptq-linearized", gptq=True),
    _ours("gptq-same-inputs", options=NO_PROPAGATION),
    _ours("smoothquant", options={"algorithm": "smoothquant"}),
    _ours("awq", options={"algorithm": "awq"}) | {"action": "quantize_unpinned"},
    _ours("autoround", options=AUTOROUND),
    _ours("few", tokens=TOO_FEW),
    _ours("few-linearized", THEIRS, TOO_FEW),
    _ours("few-all-experts", tokens=TOO_FEW, options={"calibrate_all_experts": True}),
    _ours("few-gptq", tokens=TOO_FEW, options={"algorithm": "gptq"}),
    _alone("few-gptq", tokens=TOO_FEW, gptq=True),
    _ours("few-imatrix", tokens=TOO_FEW, options={"algorithm": "imatrix-mse"}),
    _ours("threshold", recipe={"min_expert_tokens": 100}),
    _ours("padded", tokens=(2, 32), padding=8),
    _ours("padded-gptq", tokens=(2, 32), padding=8, options={"algorithm": "gptq"}),
    _ours("zero-expert", zero_expert=True),
    _errors("layer-errors", "model.language_model.layers.0", ("reference", *ALGORITHMS)),
    _errors("mlp-errors", "model.language_model.layers.0.mlp", ("reference", *SMOOTHING)),
]
SECOND_RUN = [
    _ours("reference"),
    _ours("llmcompressor", THEIRS),
    _ours("gptq", options={"algorithm": "gptq"}),
    _ours("autoround", options=AUTOROUND),
    _ours("rare-error", tokens=TOO_FEW, recipe={"rare_experts": "error"}),
    _ours("too-rare", recipe={"min_expert_tokens": 100000}),
    _ours("smoothquant-few", tokens=TOO_FEW, options={"algorithm": "smoothquant"}),
    _ours("smoothquant-linearized", THEIRS, options={"algorithm": "smoothquant"}),
    _ours(
        "smoothquant-attention",
        recipe={"exclude": ["*.mlp.*", "*.experts.*"]},
        options={"algorithm": "smoothquant"},
    ),
    _ours("no-cuda", device="cuda"),
    _ours("no-tokens", tokens=None),
    _ours("no-hessian-tokens", tokens=None, recipe={"scheme": "W4A16"}, options={"algorithm": "gptq"}),
    {"name": "reasons", "action": "reasons", "tokens": TOO_FEW},
    {"name": "unfuser-dtype", "action": "unfuser_dtype"},
    {"name": "unfuser-nothing", "action": "unfuser_nothing"},
]
