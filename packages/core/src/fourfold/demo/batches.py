"""Training batches: problems of all tasks packed into rows, made in worker processes, the same for a seed and step.

A row holds whole documents one after the other. ``position_ids`` restart at every document, from which Transformers
builds a mask that keeps documents apart; padding at a row's end has position 0 throughout and sees only itself.
This module needs NumPy and tokenizers, not torch, so that workers start fast.

Shape letters: R rows, T tokens a row, N pictures, M clips, P patches a frame, D values a patch.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fourfold.demo.architecture import PATCH_SIZE, SOFT_TOKENS_PER_FRAME
from fourfold.demo.tasks import TASKS, Frames, Problem
from fourfold.demo.tasks.vision import FRAME_SECONDS
from fourfold.demo.tokens import IMAGE, IMAGE_BEGIN, IMAGE_END, VIDEO, chat_text, token_id

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Label of a position that carries no loss.
IGNORED = -100
#: ``mm_token_type_ids`` of text, picture and clip tokens.
_TEXT, _IMAGE, _VIDEO = 0, 1, 2

TASK_NAMES = tuple(TASKS)

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One step's input. ``task_RT`` is an index into :data:`TASK_NAMES`, -1 for padding."""

    input_ids_RT: _Ints
    position_ids_RT: _Ints
    labels_RT: _Ints
    mm_token_type_ids_RT: _Ints
    task_RT: _Ints
    images_NPD: npt.NDArray[np.uint8]
    videos_MFPD: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Document:
    """One encoded problem."""

    task: int
    ids: _Ints
    num_prompt_tokens: int
    problem: Problem


def media_text(problem: Problem, num_frames: int) -> str:
    """What Gemma 4's processor puts where a picture or clip stands in the prompt."""
    if problem.medium == "text":
        return ""
    token = IMAGE if problem.medium == "image" else VIDEO
    soft = f"{IMAGE_BEGIN}{token * SOFT_TOKENS_PER_FRAME}{IMAGE_END}"
    if problem.medium == "image":
        return soft
    stamps = [int(index * FRAME_SECONDS) for index in range(num_frames)]
    return " ".join(f"{seconds // 60:02d}:{seconds % 60:02d} {soft}" for seconds in stamps)


def patchify(frames: Frames) -> npt.NDArray[np.uint8]:
    """uint8 [N, height, width, 3] to [N, P, D], patches row by row, channels last within a patch."""
    num_frames, height, width, channels = frames.shape
    rows, columns = height // PATCH_SIZE, width // PATCH_SIZE
    grid = frames.reshape(num_frames, rows, PATCH_SIZE, columns, PATCH_SIZE, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(num_frames, rows * columns, -1)


def _encode(tokenizer: Tokenizer, problems: list[tuple[int, Problem]]) -> list[_Document]:
    texts = [chat_text(problem, media_text(problem, num_frames=4)) for _, problem in problems]
    prompts = tokenizer.encode_batch([prompt for prompt, _ in texts], add_special_tokens=False)
    responses = tokenizer.encode_batch([response for _, response in texts], add_special_tokens=False)
    return [
        _Document(task, np.array(prompt.ids + response.ids, dtype=np.int64), len(prompt.ids), problem)
        for (task, problem), prompt, response in zip(problems, prompts, responses, strict=True)
    ]


def _pack(documents: list[_Document], row_tokens: int) -> list[list[_Document]]:
    """First fit, longest first: rows of at most ``row_tokens`` tokens."""
    rows: list[list[_Document]] = []
    room: list[int] = []
    for document in sorted(documents, key=lambda d: -len(d.ids)):
        if len(document.ids) > row_tokens:
            raise ValueError(f"a {document.problem.task} document has {len(document.ids)} tokens, a row {row_tokens}")
        row = next((index for index, free in enumerate(room) if free >= len(document.ids)), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_tokens)
        rows[row].append(document)
        room[row] -= len(document.ids)
    return rows


def pack_batch(tokenizer: Tokenizer, problems: list[Problem], row_tokens: int) -> Batch:
    """Encode, pack and collate problems. A prompt carries no loss; plain prose carries it everywhere."""
    documents = _encode(tokenizer, [(TASK_NAMES.index(problem.task), problem) for problem in problems])
    rows = _pack(documents, row_tokens)
    shape = (len(rows), row_tokens)
    ids, positions, kinds = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    labels, tasks = np.full(shape, IGNORED, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    images: list[npt.NDArray[np.uint8]] = []
    videos: list[npt.NDArray[np.uint8]] = []
    for index, row in enumerate(rows):
        start = 0
        for document in row:
            span = slice(start, start + len(document.ids))
            start = span.stop
            ids[index, span], positions[index, span] = document.ids, np.arange(len(document.ids))
            labels[index, span.start + document.num_prompt_tokens : span.stop] = document.ids[
                document.num_prompt_tokens :
            ]
            tasks[index, span] = document.task
            if document.problem.medium != "text":
                patches = patchify(document.problem.frames())
                images.extend(patches[:1] if document.problem.medium == "image" else [])
                videos.extend([patches] if document.problem.medium == "video" else [])
    kinds[ids == token_id(IMAGE)] = _IMAGE
    kinds[ids == token_id(VIDEO)] = _VIDEO
    empty = np.zeros(0, dtype=np.uint8)
    return Batch(
        ids, positions, labels, kinds, tasks,
        np.stack(images) if images else empty, np.stack(videos) if videos else empty,
    )  # fmt: skip


def step_problems(problems_per_step: Mapping[str, int], seed: int, step: int) -> list[Problem]:
    """The training problems of one step."""
    problems: list[Problem] = []
    for name, count in problems_per_step.items():
        stream = TASKS[name].stream("train", seed=seed * 10_000_000 + step)
        problems.extend(next(stream) for _ in range(count))
    return problems


@dataclass(frozen=True)
class BatchRecipe:
    """What decides a step's batch besides the step."""

    tokenizer_file: Path
    problems_per_step: Mapping[str, int]
    row_tokens: int
    seed: int


_TOKENIZERS: dict[Path, Tokenizer] = {}


def make_batch(recipe: BatchRecipe, step: int) -> Batch:
    """The batch of one step; called in worker processes, which load the tokenizer once."""
    from tokenizers import Tokenizer

    if recipe.tokenizer_file not in _TOKENIZERS:
        _TOKENIZERS[recipe.tokenizer_file] = Tokenizer.from_file(str(recipe.tokenizer_file))
    problems = step_problems(recipe.problems_per_step, recipe.seed, step)
    return pack_batch(_TOKENIZERS[recipe.tokenizer_file], problems, recipe.row_tokens)


def stream_batches(recipe: BatchRecipe, steps: range, num_workers: int) -> Iterator[Batch]:
    """The batches of ``steps`` in order, made ahead by ``num_workers`` processes (0: in this one)."""
    if num_workers == 0:
        yield from (make_batch(recipe, step) for step in steps)
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    ahead: deque[Future[Batch]] = deque()
    pending = iter(steps)
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        try:
            for step in pending:
                ahead.append(pool.submit(make_batch, recipe, step))
                if len(ahead) > 2 * num_workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
