"""What the toolchain process is asked to do. Names are those the tests look up."""

from __future__ import annotations

from typing import Any

#: Batches of two, and their length: enough for every expert, and too few for some.
ENOUGH = (4, 64)
TOO_FEW = (1, 4)
#: Modules whose BF16 inputs the tests need: no quantized activation comes before the first of them.
FIRST_INPUT = "model.language_model.layers.0.self_attn.q_proj"
ATTENTION_OUT = "model.language_model.layers.0.self_attn.o_proj"
DENSE_DOWN = "model.language_model.layers.0.mlp.down_proj"


def _ours(name: str, unfuser: str = "reference", tokens: tuple[int, int] | None = ENOUGH, **job: Any) -> dict[str, Any]:
    return {"name": name, "action": "quantize", "unfuser": unfuser, "tokens": tokens, **job}


def _theirs(
    name: str,
    unfuser: str,
    tokens: tuple[int, int] | None = ENOUGH,
    *,
    patterns: tuple[str, ...] = ("*",),
    activations: bool = True,
    weights_only: tuple[str, ...] = (),
    kv: bool = False,
    **job: Any,
) -> dict[str, Any]:
    return {
        "name": name, "action": "modelopt", "unfuser": unfuser, "tokens": tokens, "patterns": patterns,
        "activations": activations, "weights_only": weights_only, "kv": kv, **job,
    }  # fmt: skip


def _algorithm(name: str, **options: Any) -> dict[str, Any]:
    return _ours(name, options={"algorithm": name, **options})


EXPERTS_ONLY = ("*.experts.*",)
ATTENTION = ("*.self_attn.*",)
#: Each of these jobs is done twice: by our backend, and by ModelOpt alone under NAME + "-oracle".
IDENTITY = (
    "reference",
    "modelopt",
    "modelopt-kv-fp8",
    "reference-few",
    "modelopt-few",
    "w4a16",
    "experts-only",
    "mixed",
)
ALGORITHMS = ("mse", "four-over-six", "local-hessian", "gptq", "awq-clip", "act-headroom")

FIRST_RUN = [
    _ours("reference"),
    _theirs("reference-oracle", "reference"),
    _ours("modelopt", "modelopt"),
    _theirs("modelopt-oracle", "modelopt"),
    _ours("modelopt-kv-fp8", "modelopt", recipe={"kv_cache": "fp8"}),
    _theirs("modelopt-kv-fp8-oracle", "modelopt", kv=True),
    _ours("reference-few", tokens=TOO_FEW),
    _theirs("reference-few-oracle", "reference", TOO_FEW),
    _ours("modelopt-few", "modelopt", TOO_FEW),
    _theirs("modelopt-few-oracle", "modelopt", TOO_FEW),
    _ours("w4a16", "modelopt", None, recipe={"scheme": "W4A16"}),
    _theirs("w4a16-oracle", "modelopt", None, activations=False),
    _ours("experts-only", "modelopt", recipe={"targets": "experts-only"}),
    _theirs("experts-only-oracle", "modelopt", patterns=EXPERTS_ONLY),
    _ours("mixed", recipe={"weights_only": ATTENTION}),
    _theirs("mixed-oracle", "reference", weights_only=ATTENTION),
    _ours("demo", "modelopt", model="demo"),
    _theirs("demo-oracle", "modelopt", model="demo"),
    *(_algorithm(name) for name in ALGORITHMS),
    _ours("mse-fused", "modelopt", options={"algorithm": "mse"}),
    _ours("gptq-few", tokens=TOO_FEW, options={"algorithm": "gptq"}),
    _ours("awq-clip-few", tokens=TOO_FEW, options={"algorithm": "awq-clip"}),
    _ours("local-hessian-few", tokens=TOO_FEW, options={"algorithm": "local-hessian"}),
    _ours("threshold", recipe={"min_expert_tokens": 100}),
    {"name": "skipped", "action": "skipped", "tokens": ENOUGH},
    {
        "name": "storage",
        "action": "storage",
        "unfuser": "reference",
        "tokens": ENOUGH,
        "options": {"algorithm": "gptq"},
    },
    {
        "name": "bf16",
        "action": "inputs",
        "tokens": ENOUGH,
        "modules": [FIRST_INPUT, ATTENTION_OUT, DENSE_DOWN],
    },
]
SECOND_RUN = [
    _ours("reference"),
    _ours("modelopt", "modelopt"),
    _algorithm("gptq"),
    _ours("rare-error", tokens=TOO_FEW, recipe={"rare_experts": "error"}),
    _ours("too-rare", recipe={"min_expert_tokens": 100000}),
    _ours("gptq-fused", "modelopt", options={"algorithm": "gptq"}),
    _ours("no-tokens", tokens=None, recipe={"scheme": "W4A16", "kv_cache": "fp8"}),
    {"name": "search-nothing", "action": "search-nothing"},
    _ours("zero-expert", zero=("model.language_model.layers.0.experts.gate_up_proj", 1)),
    _ours("no-hessian-tokens", tokens=None, recipe={"scheme": "W4A16"}, options={"algorithm": "gptq"}),
]
