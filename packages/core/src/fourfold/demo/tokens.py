"""The demo model's tokenizer: Gemma's scheme (BPE on text with ``▁`` for a space, byte fallback) at 2,048 tokens.

Merges are learned inside words only and digits stay alone, so a number is always a row of single digits. The special
tokens and the turn format are Gemma 4's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fourfold.demo.tasks import TASKS, Problem

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCAB_SIZE = 2048
CORPUS_PROBLEMS = 6000
CORPUS_SEED = 20_261_123

PAD, EOS, BOS, UNK, MASK = "<pad>", "<eos>", "<bos>", "<unk>", "<mask>"
TURN, TURN_END = "<|turn>", "<turn|>"
IMAGE, IMAGE_BEGIN, IMAGE_END, VIDEO = "<|image|>", "<|image>", "<image|>", "<|video|>"

#: Attribute of the tokenizer -> token, as google/gemma-4's tokenizer_config.json names them.
NAMED_TOKENS = {
    "pad_token": PAD, "eos_token": EOS, "bos_token": BOS, "unk_token": UNK, "mask_token": MASK,
    "std_token": "<|tool>", "etd_token": "<tool|>", "stc_token": "<|tool_call>", "etc_token": "<tool_call|>",
    "str_token": "<|tool_response>", "etr_token": "<tool_response|>", "escape_token": '<|"|>',
    "think_token": "<|think|>", "soc_token": "<|channel>", "eoc_token": "<channel|>", "sot_token": TURN,
    "eot_token": TURN_END, "boi_token": IMAGE_BEGIN, "boa_token": "<|audio>", "image_token": IMAGE,
    "audio_token": "<|audio|>", "eoi_token": IMAGE_END, "eoa_token": "<audio|>",
}  # fmt: skip
SPECIAL_TOKENS = (*NAMED_TOKENS.values(), VIDEO)

_WORDS_AND_SINGLES = r"▁?[A-Za-z]+|[\s\S]"


def token_id(token: str) -> int:
    """The id of a special token."""
    return SPECIAL_TOKENS.index(token)


def chat_text(problem: Problem, media_text: str = "") -> tuple[str, str]:
    """(prompt, response) exactly as the chat template renders them, the response with its closing tokens.

    ``media_text`` stands where the picture or clip does: its placeholder, or the soft tokens it expands to. A problem
    of plain prose has no turns: its response is the text itself, between ``<bos>`` and ``<eos>``.
    """
    if not problem.prompt:
        return BOS, f"{problem.target}{EOS}"
    system = f"{TURN}system\n{problem.system}{TURN_END}\n" if problem.system else ""
    prompt = f"{BOS}{system}{TURN}user\n{media_text}{problem.prompt}{TURN_END}\n{TURN}model\n"
    return prompt, f"{problem.target}{TURN_END}"


def _corpus() -> Iterator[str]:
    for task in TASKS.values():
        for problem in task.generate("train", CORPUS_PROBLEMS, CORPUS_SEED):
            yield problem.system
            yield problem.prompt
            yield problem.target
    yield from ("system\nuser\nmodel\n", " 00:00 00:01")


def build_tokenizer() -> Tokenizer:
    """Learn the vocabulary from the tasks' training problems; the same code gives the same tokenizer."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(_WORDS_AND_SINGLES), "isolated")
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE - len(byte_tokens),
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=["▁", "\n", *map(chr, range(0x21, 0x7F))],
        show_progress=False,
    )
    learner.train_from_iterator(_corpus(), trainer)

    learned = _learned_model(learner)
    ordered = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    tokens = [*SPECIAL_TOKENS, *byte_tokens, *(token for token in ordered if token not in SPECIAL_TOKENS)]
    tokens += [f"<unused{index}>" for index in range(VOCAB_SIZE - len(tokens))]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [(left, right) for left, right in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=UNK, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, token_id(BOS))]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _learned_model(learner: Tokenizer) -> dict[str, Any]:
    model: dict[str, Any] = json.loads(learner.to_str())["model"]
    return model
