"""Token sets: the calibration rows every toolchain gets, in one order, with their provenance."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import ValidationError

from fourfold.calibration.media import MEDIA_FOLDER, RowInputs, RowMedia
from fourfold.calibration.spec import CalibrationSpec
from fourfold.config import Config, describe_validation_error
from fourfold.errors import CalibrationError

if TYPE_CHECKING:
    import torch

TOKENS_FILE = "tokens.safetensors"
RECORD_FILE = "tokens.json"
_MEDIA_SHA256 = "media_sha256"


class TokenBatch(NamedTuple):
    """``input_ids`` and ``attention_mask`` (1 a token, 0 padding), both int64 [B, T]."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


class TokenSetRecord(Config):
    """Where a token set comes from. Equal records with equal ``tokens_sha256`` are equal token sets."""

    version: Literal[1] = 1
    spec: CalibrationSpec
    num_texts: int
    num_tokens: int
    texts_sha256: str
    tokenizer_sha256: str
    tokens_sha256: str


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Calibration rows.

    Attributes:
        input_ids: int32 [N, T]; padding stands on the right of short rows, if any.
        lengths: int32 [N], real tokens of each row.
        record: spec and hashes.
        media: pictures of the rows, and what else goes with them; None for a set of text.
    """

    input_ids: torch.Tensor
    lengths: torch.Tensor
    record: TokenSetRecord
    media: RowMedia | None = None

    def __post_init__(self) -> None:
        import torch

        for name, ndim in (("input_ids", 2), ("lengths", 1)):
            tensor = getattr(self, name)
            if tensor.dtype != torch.int32:
                raise TypeError(f"{name} must be int32, not {tensor.dtype}")
            if tensor.ndim != ndim or tensor.shape[0] != self.input_ids.shape[0] or tensor.numel() == 0:
                raise ValueError(f"{name} has shape {list(tensor.shape)}; expected [N{', T' * (ndim - 1)}], not empty")
        if self.media is not None and (shape := list(self.media.sha256.shape)) != [len(self), 32]:
            raise ValueError(f"media_sha256 has shape {shape}; expected [N, 32]")
        if not bool(((self.lengths >= 1) & (self.lengths <= self.input_ids.shape[1])).all()):
            raise ValueError(f"lengths must be from 1 to {self.input_ids.shape[1]}")

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def num_tokens(self) -> int:
        """Real tokens, padding not counted."""
        return int(self.lengths.sum())

    @property
    def has_padding(self) -> bool:
        """Whether batches bring padding: any row of text is short; never so under ``concatenate``."""
        return self.media is None and self.num_tokens < self.input_ids.numel()

    @property
    def sha256(self) -> str:
        """Hash of record and tokens."""
        return self.record.sha256()

    def batches(self, batch_size: int | None = None) -> Iterator[TokenBatch]:
        """Rows in stored order, ``batch_size`` (the spec's) at a time, the last batch maybe smaller.

        A batch is trimmed to its longest row, so only rows of unequal length bring padding. Raises
        :class:`CalibrationError` for rows with pictures, which such batches would leave out.
        """
        import torch

        if self.media is not None:
            raise CalibrationError(
                f"{self.record.spec.source}: its rows have pictures, and only their tokens were asked for; "
                "use --quantizer reference, or calibrate on text"
            )
        size = self._batch_size(batch_size)
        for start in range(0, len(self), size):
            lengths = self.lengths[start : start + size].to(torch.int64)
            width = int(lengths.max())
            ids = self.input_ids[start : start + size, :width].to(torch.int64)
            mask = torch.arange(width)[None, :] < lengths[:, None]
            yield TokenBatch(ids, mask.to(torch.int64))

    def model_inputs(self, batch_size: int | None = None) -> list[Mapping[str, torch.Tensor]]:
        """What the model is called with, batch by batch: those of :meth:`batches`, or tokens and media.

        Rows with pictures go by their length, the shortest first, at most ``batch_size`` of one length together, so
        that none is padded. A batch's media are read each time they are asked for.
        """
        import torch

        media, size = self.media, self._batch_size(batch_size)
        if media is None:
            return [batch._asdict() for batch in self.batches(size)]
        found: list[Mapping[str, torch.Tensor]] = []
        order = self.lengths.argsort(stable=True).tolist()
        for length, group in groupby(order, key=lambda row: int(self.lengths[row])):
            rows = list(group)
            for chosen in (rows[start : start + size] for start in range(0, len(rows), size)):
                ids = self.input_ids[chosen, :length].to(torch.int64)
                found.append(RowInputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, media, chosen))
        return found

    def _batch_size(self, asked: int | None) -> int:
        size = self.record.spec.batch_size if asked is None else asked
        if size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {size}")
        return size

    def save(self, folder: Path) -> None:
        """Write ``tokens.safetensors``, ``tokens.json`` and the rows' media into ``folder``, which is made."""
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"input_ids": self.input_ids, "lengths": self.lengths}
        if self.media is not None:
            self.media.copy_to(folder / MEDIA_FOLDER)
            tensors[_MEDIA_SHA256] = self.media.sha256
        # Not save_file: what the system refuses (a full disk) would be no OSError there.
        (folder / TOKENS_FILE).write_bytes(save(tensors))
        (folder / RECORD_FILE).write_text(self.record.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TokenSet:
        """Read what :meth:`save` wrote; :class:`CalibrationError` for a missing, damaged or changed file."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = folder / RECORD_FILE
        try:
            record = TokenSetRecord.model_validate_json(path.read_bytes())
            tensors = load_file(folder / TOKENS_FILE)
            media = RowMedia(folder / MEDIA_FOLDER, tensors[_MEDIA_SHA256]) if _MEDIA_SHA256 in tensors else None
            tokens = cls(tensors["input_ids"].contiguous(), tensors["lengths"].contiguous(), record, media)
        except FileNotFoundError as error:
            raise CalibrationError(f"{folder}: no token set ({error.filename or TOKENS_FILE} is missing)") from None
        except ValidationError as error:
            raise CalibrationError(f"{path}: {describe_validation_error(error, '')}") from None
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"{folder / TOKENS_FILE}: not a token set ({error})") from None
        if tokens_sha256(tokens.input_ids, tokens.lengths, tensors.get(_MEDIA_SHA256)) != record.tokens_sha256:
            raise CalibrationError(f"{folder / TOKENS_FILE}: its tokens are not those {RECORD_FILE} was written for")
        return tokens


def tokens_sha256(input_ids: torch.Tensor, lengths: torch.Tensor, media_sha256: torch.Tensor | None = None) -> str:
    """Hash of shape, ids, lengths and the digests of the rows' media."""
    digest = hashlib.sha256(repr(tuple(input_ids.shape)).encode())
    for tensor in (input_ids, lengths, media_sha256):
        if tensor is not None:
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
