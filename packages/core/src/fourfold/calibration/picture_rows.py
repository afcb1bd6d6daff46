"""Chats with pictures to rows: one chat a row, as the model's own template and processor make it.

Rows are never packed nor padded: the model is called with rows of equal length together, so no position that an
observer sees is padding.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.calibration.media import MEDIA_FOLDER, RowMedia, write_row
from fourfold.calibration.pictures import PictureChat
from fourfold.calibration.spec import CalibrationSpec
from fourfold.checkpoint.untrusted import printable, read_json
from fourfold.errors import CalibrationError

if TYPE_CHECKING:
    import torch

    from fourfold.progress import Progress

#: What decides how a picture becomes pixels.
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
#: The processor's name for which tokens stand for media; 0 is text.
_KINDS = "mm_token_type_ids"


class PictureRows:
    """Rows made one by one, their media written as they are made.

    Attributes:
        input_ids: int32 [N, T], padded on the right where it is stored.
        lengths: int32 [N].
        media: the rows' files.
        texts_sha256: of the messages and of the pictures' pixels, in the order they were used.
    """

    def __init__(
        self, spec: CalibrationSpec, chats: Iterable[PictureChat], model_path: Path, folder: Path | None, bar: Progress
    ) -> None:
        """Raises :class:`CalibrationError`: no vision tower or processor, a picture or chat that cannot be used."""
        import torch

        self._spec, self._digest = spec, hashlib.sha256()
        self._processor = _load_processor(model_path)
        keep = None if folder is not None else tempfile.TemporaryDirectory(prefix="fourfold-media-")
        media = Path(keep.name) if keep is not None else folder / MEDIA_FOLDER  # type: ignore[operator]
        media.mkdir(parents=True, exist_ok=True)
        rows, digests = [], []
        for number, chat in enumerate(islice(chats, spec.samples)):
            ids, others = self._row(chat)
            rows.append(ids)
            digests.append(write_row(media, number, others))
            bar.advance(1)
        self.found = len(rows)
        self.lengths = torch.tensor([len(ids) for ids in rows], dtype=torch.int32)
        self.input_ids = torch.full((len(rows), spec.sequence_length), _pad_id(self._processor), dtype=torch.int32)
        for row, ids in zip(self.input_ids, rows, strict=True):
            row[: len(ids)] = ids
        self.media = RowMedia(media, torch.stack(digests), keep)
        self.texts_sha256 = self._digest.hexdigest()

    def _row(self, chat: PictureChat) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Ids int32 [T], and what else the model is called with."""
        images = [picture.read() for picture in chat.pictures]
        chat.update(self._digest, images)
        try:
            text = self._processor.apply_chat_template(chat.messages, tokenize=False)
            # The template writes BOS itself.
            found = self._processor(
                text=[text], images=[images] if images else None, add_special_tokens=False, return_tensors="pt"
            )
        except Exception as error:  # a template is a program, and may fail in any way
            reason = printable(" ".join(str(error).split()), 200)
            raise CalibrationError(f"{chat.where}: the model's processor does not take this chat ({reason})") from error
        row = {name: value for name, value in found.items() if name != "attention_mask"}
        return self._cut(row, chat.where)

    def _cut(self, row: Mapping[str, torch.Tensor], where: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """At the sequence length, as text rows are; a picture's tokens cannot be cut."""
        import torch

        limit, shape = self._spec.sequence_length, row["input_ids"].shape
        if shape[1] > limit:
            if bool(row[_KINDS][:, limit:].any()):
                raise CalibrationError(
                    f"{where}: {shape[1]} tokens, those of a picture among them after the first {limit}; "
                    "ask for a longer sequence, or leave the chat out"
                )
            row = {name: value[:, :limit] if value.shape == shape else value for name, value in row.items()}
        others = {name: value for name, value in row.items() if name != "input_ids"}
        return row["input_ids"][0].to(torch.int32), others


def _pad_id(processor: Any) -> int:
    return int(processor.tokenizer.pad_token_id or 0)


def _load_processor(model_path: Path) -> Any:
    from transformers import AutoProcessor

    config = read_json(model_path / "config.json")
    if not isinstance(config, dict) or not config.get("vision_config"):
        raise CalibrationError(f"{model_path}: no vision_config in its config.json, so it takes no pictures")
    try:
        processor: Any = AutoProcessor.from_pretrained(model_path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of the tokenizer's files too, which may be broken in any way
        reason = printable(" ".join(str(error).split()), 200)
        raise CalibrationError(f"{model_path}: no usable processor ({reason})") from error
    if not hasattr(processor, "image_processor") or not processor.chat_template:
        missing = "chat template" if hasattr(processor, "image_processor") else "image processor"
        raise CalibrationError(f"{model_path}: no usable processor (it has no {missing})")
    return processor
