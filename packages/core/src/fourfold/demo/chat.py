"""A problem as an OpenAI chat request takes it: pictures and clips as data URLs inside the message.

A picture is a PNG, so its pixels arrive as they were drawn. A clip is what vLLM reads as ``video/jpeg``: JPEG frames
with commas between them, one a second unless the request says otherwise, which is how the demo's clips are timed.
"""

from __future__ import annotations

import base64
import io
from typing import Any

from fourfold.demo.tasks import Problem

_JPEG_QUALITY = 95


def chat_messages(problem: Problem) -> list[dict[str, Any]]:
    """The problem's messages, without its reference response."""
    return [
        {"role": message["role"], "content": [_part(part, problem) for part in message["content"]]}
        for message in problem.messages
    ]


def _part(part: dict[str, Any], problem: Problem) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    if part["type"] == "image":
        picture = _encoded(problem.frames()[0], "PNG")
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
    frames = [_encoded(frame, "JPEG", quality=_JPEG_QUALITY, subsampling=0) for frame in problem.frames()]
    return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(frames)}"}}


def _encoded(pixels: Any, kind: str, **options: Any) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()
