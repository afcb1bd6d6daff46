"""Chats with pictures: where the pictures of a file and of the demo's problems come from, and what is refused.

A picture of a file is named by its path relative to the file, and lies in the file's folder or below it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fourfold.checkpoint.untrusted import printable
from fourfold.errors import CalibrationError

if TYPE_CHECKING:
    from PIL.Image import Image

    from fourfold.demo.tasks import Problem

Messages = list[dict[str, Any]]

#: What Pillow may decode by itself; other formats of its are programs (PostScript) or run some.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


class Picture(Protocol):
    """Something that gives a picture when it is its row's turn."""

    def read(self) -> Image:
        """The picture in RGB."""


@dataclass(frozen=True)
class PictureFile:
    """A picture in a file; ``where`` names the line that wants it."""

    path: Path
    where: str

    def read(self) -> Image:
        """See :class:`Picture`; turned as its EXIF says. :class:`CalibrationError` where it cannot be decoded."""
        from PIL import Image, ImageOps

        try:
            with Image.open(self.path, formats=_FORMATS) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:  # decoders of damaged files fail in any way
            raise CalibrationError(
                f"{self.where}: picture {self.path} cannot be read ({printable(' '.join(str(error).split()), 200)})"
            ) from error


@dataclass(frozen=True)
class DemoPicture:
    """The picture of one of the demo's problems."""

    problem: Problem

    def read(self) -> Image:
        """See :class:`Picture`."""
        from PIL import Image

        return Image.fromarray(self.problem.frames()[0])


@dataclass(frozen=True)
class Chat:
    """Messages as a chat template takes them; ``where`` names their place: ``FILE:LINE``."""

    messages: Messages
    where: str


@dataclass(frozen=True)
class PictureChat(Chat):
    """Messages whose parts of type ``image`` stand for ``pictures`` in turn; there may be none."""

    pictures: tuple[Picture, ...]

    def update(self, digest: Any, images: list[Image]) -> None:
        """Hash the messages, and the pictures as they were decoded."""
        canonical = json.dumps(self.messages, ensure_ascii=False, sort_keys=True).encode()
        digest.update(len(canonical).to_bytes(8, "little") + canonical)
        for image in images:
            digest.update(repr(image.size).encode() + hashlib.sha256(image.tobytes()).digest())


def demo_chats(seed: int) -> Iterator[PictureChat]:
    """The demo's training problems with a picture, answers included, without end."""
    from fourfold.demo.tasks import get_task

    for number, problem in enumerate(get_task("vision").stream("train", seed), start=1):
        answer = {"role": "assistant", "content": [{"type": "text", "text": problem.target}]}
        yield PictureChat([*problem.messages, answer], f"demo-vision, problem {number}", (DemoPicture(problem),))


def find_pictures(messages: Messages, folder: Path | None, where: str) -> PictureChat | None:
    """A chat's pictures, or None where it has none. ``folder`` is where they may lie; None where none may be.

    Raises :class:`CalibrationError` for a picture that is missing or outside ``folder``, for other media, and for
    content that is neither a string nor parts.
    """
    pictures: list[Picture] = []
    turns = []
    for number, message in enumerate(messages, start=1):
        content = message["content"]
        if isinstance(content, list):
            content = [_part(part, folder, where, pictures) for part in content]
        elif not isinstance(content, str):
            raise CalibrationError(
                f"{where}: the content of message {number} is a {type(content).__name__}, not a string or a list of "
                'parts; write "" where a message has no text, or leave the chat out'
            )
        turns.append({**message, "content": content})
    return PictureChat(turns, where, tuple(pictures)) if pictures else None


def _part(part: Any, folder: Path | None, where: str, pictures: list[Picture]) -> Any:
    if not isinstance(part, dict):
        raise CalibrationError(f"{where}: a content part is a {type(part).__name__}, not an object with a type")
    kind = part.get("type")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise CalibrationError(f'{where}: a content part of type text without a string as its "text"')
        return part
    if kind != "image" or not isinstance(part.get("path"), str):
        what = f"of type {printable(str(kind), 40)}" if kind != "image" else "of type image without a path"
        raise CalibrationError(f'{where}: a content part {what}; known: text, and image with "path": "FILE"')
    if folder is None:
        raise CalibrationError(f"{where}: pictures are read from .jsonl files alone")
    pictures.append(PictureFile(_inside(folder, part["path"], where), where))
    return {"type": "image"}


def _inside(folder: Path, name: str, where: str) -> Path:
    path, shown = folder / name, printable(name, 200)
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
        found = path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long a name, a zero byte, links in a circle
        inside, found = True, False
    if not inside:
        raise CalibrationError(f"{where}: picture {shown} lies outside {folder.resolve()}")
    if not found:
        raise CalibrationError(f"{where}: no picture {shown} in {folder.resolve()}")
    return path
