"""A small random Gemma 4 mixture-of-experts, and tokens for it. Nothing is fetched.

Two layers (sliding, then full attention with K reused as V), or more pairs of them; 8 experts, top 2, a vision tower;
1 MB.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fourfold.calibration import TokenSet

VOCABULARY = 256
NUM_EXPERTS = 8
_ROWS, _LENGTH = 8, 32

_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32,
    "num_global_key_value_heads": 1, "attention_k_eq_v": True, "enable_moe_block": True, "num_experts": NUM_EXPERTS,
    "top_k_experts": 2, "moe_intermediate_size": 48,
    "sliding_window": 32, "final_logit_softcapping": 30.0, "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0, "max_position_embeddings": 256,
    "use_bidirectional_attention": "vision", "dtype": "bfloat16",
}  # fmt: skip
_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 64, "standardize": True, "dtype": "bfloat16",
}  # fmt: skip
#: What travels beside the weights; content does not matter here, only that it arrives unchanged.
_SIDE_FILES = {
    "chat_template.jinja": "{{ messages }}\n",
    "generation_config.json": '{"eos_token_id": 1}\n',
    "processor_config.json": '{"image_seq_length": 4}\n',
    "tokenizer.json": '{"version": "1.0"}\n',
    "tokenizer_config.json": '{"model_max_length": 256}\n',
}


def make_model(folder: Path, pairs: int = 1) -> Path:
    """Write the model, of ``pairs`` of layers, with its side files into ``folder`` and return it.

    The same weights every time.
    """
    import torch
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    layer_types = ["sliding_attention", "full_attention"] * pairs
    sized = _TEXT | {"layer_types": layer_types, "num_hidden_layers": len(layer_types)}
    config = Gemma4Config(text_config=sized, vision_config=_VISION, audio_config=None, dtype="bfloat16")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Gemma4ForConditionalGeneration(config).to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.fill_(0.7)
    model.save_pretrained(folder)
    for name, text in _SIDE_FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def load_model(folder: Path) -> nn.Module:
    """The model, loaded; experts run one by one, so that a linear's hooks fire."""
    import torch
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager", experts_implementation="eager",
        trust_remote_code=False, use_safetensors=True,
    )  # fmt: skip
    return model.eval()  # type: ignore[no-any-return]


def logits(model: nn.Module) -> torch.Tensor:
    """float32 [B, T, vocabulary] for fixed random tokens."""
    import torch

    with torch.no_grad():
        output = model(input_ids=_random_rows().to(torch.int64)[:2], use_cache=False)
    return output.logits.float()  # type: ignore[no-any-return]


def make_tokens(num_rows: int = _ROWS, length: int = _LENGTH) -> TokenSet:
    """Calibration rows of random token ids, without padding; the same every time."""
    import torch

    from fourfold.calibration import CalibrationSpec, TokenSet, TokenSetRecord
    from fourfold.calibration.tokens import tokens_sha256

    rows = _random_rows(num_rows, length)
    lengths = torch.full((len(rows),), rows.shape[1], dtype=torch.int32)
    record = TokenSetRecord(
        spec=CalibrationSpec(source="random", samples=len(rows), sequence_length=rows.shape[1], batch_size=2),
        num_texts=len(rows),
        num_tokens=rows.numel(),
        texts_sha256="",
        tokenizer_sha256="",
        tokens_sha256=tokens_sha256(rows, lengths),
    )
    return TokenSet(rows, lengths, record)


def _random_rows(num_rows: int = _ROWS, length: int = _LENGTH) -> torch.Tensor:
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (num_rows, length), generator=generator, dtype=torch.int32)
