"""Token sets: the calibration rows every toolchain gets, in one order, with their provenance."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import ValidationError

from fourfold.calibration.spec import CalibrationSpec
from fourfold.config import Config, describe_validation_error
from fourfold.errors import CalibrationError

if TYPE_CHECKING:
    import torch

TOKENS_FILE = "tokens.safetensors"
RECORD_FILE = "tokens.json"


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
    """

    input_ids: torch.Tensor
    lengths: torch.Tensor
    record: TokenSetRecord

    def __post_init__(self) -> None:
        import torch

        for name, ndim in (("input_ids", 2), ("lengths", 1)):
            tensor = getattr(self, name)
            if tensor.dtype != torch.int32:
                raise TypeError(f"{name} must be int32, not {tensor.dtype}")
            if tensor.ndim != ndim or tensor.shape[0] != self.input_ids.shape[0] or tensor.numel() == 0:
                raise ValueError(f"{name} has shape {list(tensor.shape)}; expected [N{', T' * (ndim - 1)}], not empty")
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
        """Whether any row is short; never so under ``concatenate``."""
        return self.num_tokens < self.input_ids.numel()

    @property
    def sha256(self) -> str:
        """Hash of record and tokens."""
        return self.record.sha256()

    def batches(self, batch_size: int | None = None) -> Iterator[TokenBatch]:
        """Rows in stored order, ``batch_size`` (the spec's) at a time, the last batch maybe smaller.

        A batch is trimmed to its longest row, so only rows of unequal length bring padding.
        """
        import torch

        size = self.record.spec.batch_size if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {size}")
        for start in range(0, len(self), size):
            lengths = self.lengths[start : start + size].to(torch.int64)
            width = int(lengths.max())
            ids = self.input_ids[start : start + size, :width].to(torch.int64)
            mask = torch.arange(width)[None, :] < lengths[:, None]
            yield TokenBatch(ids, mask.to(torch.int64))

    def save(self, folder: Path) -> None:
        """Write ``tokens.safetensors`` and ``tokens.json`` into ``folder``, which is made."""
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        # Not save_file: what the system refuses (a full disk) would be no OSError there.
        (folder / TOKENS_FILE).write_bytes(save({"input_ids": self.input_ids, "lengths": self.lengths}))
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
            tokens = cls(tensors["input_ids"].contiguous(), tensors["lengths"].contiguous(), record)
        except FileNotFoundError as error:
            raise CalibrationError(f"{folder}: no token set ({error.filename or TOKENS_FILE} is missing)") from None
        except ValidationError as error:
            raise CalibrationError(f"{path}: {describe_validation_error(error, '')}") from None
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"{folder / TOKENS_FILE}: not a token set ({error})") from None
        if tokens_sha256(tokens.input_ids, tokens.lengths) != record.tokens_sha256:
            raise CalibrationError(f"{folder / TOKENS_FILE}: its tokens are not those {RECORD_FILE} was written for")
        return tokens


def tokens_sha256(input_ids: torch.Tensor, lengths: torch.Tensor) -> str:
    """Hash of shape, ids and lengths."""
    digest = hashlib.sha256(repr(tuple(input_ids.shape)).encode())
    for tensor in (input_ids, lengths):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
