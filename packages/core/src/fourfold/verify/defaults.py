"""What Transformers takes where a Gemma 4's files state nothing: the defaults of its own classes.

No class is chosen by what a file says, and none is given a stranger's values.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from fourfold.verify.facts import Defaults


@cache
def config_defaults(text_alone: bool) -> Defaults:
    """Of config.json; ``text_alone`` where it is the text model's own."""
    from transformers import Gemma4AudioConfig, Gemma4Config, Gemma4TextConfig, Gemma4VisionConfig

    if text_alone:
        return Defaults(Gemma4TextConfig().to_dict())
    classes = {"text_config": Gemma4TextConfig, "vision_config": Gemma4VisionConfig, "audio_config": Gemma4AudioConfig}
    own = {key: value for key, value in Gemma4Config().to_dict().items() if key not in classes}
    return Defaults(own, {name: Defaults(made().to_dict()) for name, made in classes.items()})


@cache
def processor_defaults() -> Defaults:
    """Of processor_config.json."""
    from transformers import Gemma4AudioFeatureExtractor, Gemma4ImageProcessor, Gemma4VideoProcessor

    sections = {
        "feature_extractor": Gemma4AudioFeatureExtractor,
        "image_processor": Gemma4ImageProcessor,
        "video_processor": Gemma4VideoProcessor,
    }
    return Defaults(sections={name: Defaults(_as_json(made())) for name, made in sections.items()})


@cache
def image_processor_defaults() -> Defaults:
    """Of preprocessor_config.json, the image processor's alone."""
    return processor_defaults().sections["image_processor"]


def _as_json(processor: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(processor.to_json_string())
    return content
