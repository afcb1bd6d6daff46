"""Where calibration texts come from: hub datasets, local files, the demo model's own problems.

Every source yields texts in an order fixed by the seed. A text is a string or a chat; where one text of a source has
pictures, all of them are chats with pictures.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from fourfold.calibration.pictures import Chat, PictureChat, PictureFile, demo_chats, find_pictures
from fourfold.calibration.spec import CalibrationSpec
from fourfold.checkpoint.untrusted import half_surrogate
from fourfold.errors import CalibrationError, UnknownNameError
from fourfold.jsonl import read_lines, read_objects

#: Chats with pictures are :class:`PictureChat`.
Text = str | Chat

#: A streamed data set is shuffled within a window of so many rows.
_SHUFFLE_BUFFER = 10_000
_DEFAULT_FILE_FIELD = "text"
#: The field of a .jsonl file whose first line has it, and no text.
_CHAT_FIELD = "messages"
_DEMO, _DEMO_VISION = "demo", "demo-vision"


@dataclass(frozen=True)
class HubDataset:
    """A data set on the Hugging Face hub, and the field its texts stand in."""

    path: str
    config: str
    split: str
    field: str


HUB_DATASETS = {"cnn_dailymail": HubDataset("abisee/cnn_dailymail", "3.0.0", "train", "article")}


def read_texts(spec: CalibrationSpec) -> Iterator[Text]:
    """The texts of ``spec.source`` in seeded order, empty ones left out.

    Raises:
        UnknownNameError: neither a known source nor a path.
        CalibrationError: the source cannot be read; the message names the file and the line.
    """
    if spec.source in HUB_DATASETS:
        texts = _from_hub(HUB_DATASETS[spec.source], spec)
    elif spec.source == _DEMO:
        texts = _from_demo(spec.seed)
    elif spec.source == _DEMO_VISION:
        texts = demo_chats(spec.seed)
    else:
        texts = _from_file(spec)
    return (text for text in texts if not _is_empty(text))


def source_files(spec: CalibrationSpec) -> tuple[Path, ...]:
    """The local files that decide the texts: the source's own and its pictures; none for a source known by name.

    Raises :class:`CalibrationError` as :func:`read_texts` does.
    """
    path = Path(spec.source)
    if spec.source in (*HUB_DATASETS, _DEMO, _DEMO_VISION) or not path.is_file():
        return ()
    texts = _read_jsonl(path, spec.field) if path.suffix == ".jsonl" else ()
    chats = (text for text in texts if isinstance(text, PictureChat))
    pictures = {picture.path for chat in chats for picture in chat.pictures if isinstance(picture, PictureFile)}
    return (path, *sorted(pictures))


def _from_hub(dataset: HubDataset, spec: CalibrationSpec) -> Iterator[Text]:
    from datasets import load_dataset

    field = spec.field or dataset.field
    try:
        rows = load_dataset(dataset.path, dataset.config, split=dataset.split, streaming=True)
        shuffled = rows.shuffle(seed=spec.seed, buffer_size=_SHUFFLE_BUFFER)
        for number, row in enumerate(shuffled, start=1):
            yield _pick(row, field, f"{dataset.path}, row {number}")
    except OSError as error:
        raise CalibrationError(
            f"{dataset.path}: the hub cannot be reached ({type(error).__name__}: {_one_line(error)}); "
            "pass a local .jsonl, .parquet or .txt file instead"
        ) from error


def _from_demo(seed: int) -> Iterator[Text]:
    from fourfold.demo.tasks import TASKS

    rng = random.Random(seed)
    streams = {name: task.stream("train", seed) for name, task in TASKS.items()}
    first = {name: next(stream) for name, stream in streams.items()}
    names = sorted(name for name, problem in first.items() if problem.medium == "text")
    for number in count(1):
        problem = next(streams[rng.choice(names)])
        if problem.prompt:
            turns = (("system", problem.system), ("user", problem.prompt), ("assistant", problem.target))
            messages = [{"role": role, "content": content} for role, content in turns if content]
            yield Chat(messages, f"{_DEMO}, problem {number}")
        else:
            yield problem.target


def _from_file(spec: CalibrationSpec) -> Iterator[Text]:
    path = Path(spec.source)
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".txt": _read_lines}
    if path.suffix not in readers:
        if path.suffix or path.exists() or len(path.parts) > 1:
            raise CalibrationError(f"{path}: not a calibration file; known: {', '.join(readers)}")
        raise UnknownNameError("calibration source", spec.source, (*HUB_DATASETS, _DEMO, _DEMO_VISION, "a path"))
    if not path.is_file():
        raise CalibrationError(f"{path}: no such file")
    if path.suffix == ".txt" and spec.field is not None:
        raise CalibrationError(f"{path}: a .txt file has no fields; leave field {spec.field!r} out")
    texts = list(readers[path.suffix](path, spec.field))
    if not texts:
        raise CalibrationError(f"{path}: the file is empty")
    random.Random(spec.seed).shuffle(texts)
    with_pictures = any(isinstance(text, PictureChat) for text in texts)
    yield from (_as_chat(text, path) for text in texts) if with_pictures else texts


def _as_chat(text: Text, path: Path) -> Text:
    """A text among chats with pictures: a chat without; empty ones stay as they are."""
    if isinstance(text, PictureChat) or _is_empty(text):
        return text
    if isinstance(text, str):
        return PictureChat([{"role": "user", "content": text}], str(path), ())
    return PictureChat(text.messages, text.where, ())


def _is_empty(text: Text) -> bool:
    return not (text.strip() if isinstance(text, str) else text.messages)


def _read_lines(path: Path, field: str | None) -> Iterator[str]:
    del field
    for _, line in read_lines(path, CalibrationError):
        yield line


def _read_jsonl(path: Path, field: str | None) -> Iterator[Text]:
    for where, row in read_objects(path, CalibrationError):
        if field is None:
            field = _CHAT_FIELD if _CHAT_FIELD in row and _DEFAULT_FILE_FIELD not in row else _DEFAULT_FILE_FIELD
        yield _pick(row, field, where, path.parent)


def _read_parquet(path: Path, field: str | None) -> Iterator[Text]:
    import pyarrow
    from pyarrow import parquet

    field = field or _DEFAULT_FILE_FIELD
    try:
        file = parquet.ParquetFile(path)
        if field not in file.schema_arrow.names:
            raise CalibrationError(_missing_field(field, file.schema_arrow.names, str(path)))
        number = 0
        for batch in file.iter_batches(columns=[field]):
            for row in batch.to_pylist():
                number += 1
                yield _pick(row, field, f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise CalibrationError(f"{path}: not a readable Parquet file ({_one_line(error)})") from error


def _pick(row: dict[str, Any], field: str, where: str, folder: Path | None = None) -> Text:
    """A row's text; ``folder`` is where its pictures may lie."""
    if field not in row:
        raise CalibrationError(_missing_field(field, row, where))
    text: Any = row[field]
    if not isinstance(text, str) and not _is_chat(text):
        raise CalibrationError(
            f"{where}: field {field!r} holds a {type(text).__name__}, not a string or a list of chat messages"
        )
    half = half_surrogate(text)
    if half is not None:
        raise CalibrationError(
            f"{where}: field {field!r} has {half}, half of a surrogate pair, which is no character; write both halves, "
            "or leave it out"
        )
    return text if isinstance(text, str) else find_pictures(text, folder, where) or Chat(text, where)


def _is_chat(text: object) -> bool:
    return isinstance(text, list) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in text)


def _missing_field(field: str, found: Iterable[str], where: str) -> str:
    return f"{where}: no field {field!r}; found: {', '.join(map(str, found)) or 'none'}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
