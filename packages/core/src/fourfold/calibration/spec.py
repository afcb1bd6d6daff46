"""What calibration data is asked for: a frozen record that can be hashed and stored."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from fourfold.config import Config


class Packing(StrEnum):
    """How texts become rows of ``sequence_length`` tokens.

    ``concatenate``: texts follow each other until the row is full, each beginning with its own BOS token; the
    text that reaches the end is cut there and its rest dropped, so that every row begins with a text. No row
    has padding, which is what calibration needs: a mask keeps padding out of attention, but not out of an
    observer's amax or out of the router, as toolchains observe every position they are given. Tokens do
    attend to the text before theirs.

    ``truncate``: one text a row, cut or padded on the right, as the published recipe's loader does; batches
    are trimmed to their longest row and carry the mask. Only for repeating such a recipe.
    """

    CONCATENATE = "concatenate"
    TRUNCATE = "truncate"


class CalibrationSpec(Config):
    """Calibration data by name or path. The defaults are those published for Gemma 4 26B-A4B, but for
    packing.

    ``source`` is ``cnn_dailymail`` (the hub dataset), ``demo`` (the demo model's own training problems, media
    left out), ``demo-vision`` (those with a picture) or the path of a ``.jsonl``, ``.parquet`` or ``.txt`` file (one
    text a line). A text is a string, or a list of chat messages, which is rendered with the model's chat template;
    ``chat_template`` makes every plain string a user's turn of such a chat.

    Chats of a ``.jsonl`` file may have pictures (content parts of type ``image`` with a ``path``). Then every row is
    one chat, cut at ``sequence_length``, neither packed nor padded, whatever ``packing`` says.

    ``field`` names the JSON key or Parquet column; by default the source's own, and ``text`` for files, or
    ``messages`` where a ``.jsonl`` file's first line has that alone. ``samples`` counts rows.
    """

    source: str = Field(default="cnn_dailymail", min_length=1)
    field: str | None = Field(default=None, min_length=1)
    samples: int = Field(default=4096, ge=1)
    sequence_length: int = Field(default=1024, ge=2)
    batch_size: int = Field(default=16, ge=1)
    seed: int = Field(default=0, ge=0)
    chat_template: bool = False
    packing: Packing = Packing.CONCATENATE
