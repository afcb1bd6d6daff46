from __future__ import annotations

import json
from pathlib import Path

import pytest

from fourfold.calibration import CalibrationSpec

PAD, BOS, EOS = 0, 1, 2
MAX_POSITIONS = 64


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and a tokenizer that gives BOS and one id a word: ``w5`` is 3 + 5."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(200)), "user", "assistant", ":"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=32,
    )
    fast.chat_template = "<bos> {% for m in messages %}{{ m.role }} : {{ m.content }} <eos> {% endfor %}"
    folder = tmp_path_factory.mktemp("model")
    fast.save_pretrained(folder)
    config = {"model_type": "gemma4", "text_config": {"max_position_embeddings": MAX_POSITIONS}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """40 texts of 1 to 20 words."""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(" ".join(f"w{i}" for _ in range(1 + i % 20)) for i in range(40)) + "\n")
    return path


def spec_for(source: Path | str, **changes: object) -> CalibrationSpec:
    fields = {"samples": 6, "sequence_length": 8, "batch_size": 4, "source": str(source)} | changes
    return CalibrationSpec.parse(fields, where="calibration")
