"""The source's own files as other tools save them: the same facts, spelled otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .planting_files import edit_json

CONFIG, GENERATION = "config.json", "generation_config.json"
PROCESSOR, TOKENIZER = "processor_config.json", "tokenizer_config.json"


def resaved(name: str, how: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Save one file anew, then change a fact in it."""
    return lambda folder: (edit_json(name, _SAVES[name])(folder), edit_json(name, how)(folder))


def resave_all(folder: Path) -> None:
    """Save every file anew."""
    for name, save in _SAVES.items():
        edit_json(name, save)(folder)


def _config(config: dict[str, Any]) -> None:
    """The source is as Transformers saves it; this is Google's spelling, with an older library's additions."""
    text, vision = config["text_config"], config["vision_config"]
    del text["per_layer_config"]
    text |= {"global_head_dim": 32, "num_global_key_value_heads": 1, "_name_or_path": "elsewhere"}
    for key in ("use_cache", "id2label", "attention_bias"):
        text.pop(key, None)
    vision["rope_parameters"] = {"rope_type": "default", "rope_theta": 100.0}
    vision |= {"return_dict": True, "problem_type": None, "chunk_size_feed_forward": 0, "a_key_nobody_knows": None}
    config["transformers_version"] = "5.10.0"
    config["torch_dtype"] = config.pop("dtype")


def _processor(config: dict[str, Any]) -> None:
    config["image_processor"] |= {"do_resize": True, "rescale_factor": 1 / 255}
    config["feature_extractor"] |= {"sampling_rate": 16000, "dither": 0.0, "per_bin_mean": None}


def _tokenizer(config: dict[str, Any]) -> None:
    config |= {"is_local": True, "local_files_only": False, "add_prefix_space": None}
    config["model_specific_special_tokens"] = {"sot_token": config["sot_token"]}


def _generation(config: dict[str, Any]) -> None:
    config |= {"transformers_version": "5.10.0", "_from_model_config": True, "top_k": None}


_SAVES = {CONFIG: _config, PROCESSOR: _processor, TOKENIZER: _tokenizer, GENERATION: _generation}
