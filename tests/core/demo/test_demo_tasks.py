"""The generators: deterministic, disjoint by construction, and judged by checkers that can fail."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from random import Random

import pytest

from fourfold.demo import held_out
from fourfold.demo.tasks import SPLITS, TASKS, Problem, get_task, split_of
from fourfold.demo.tasks.arithmetic import extract_answer
from fourfold.demo.tasks.constraints import KINDS, Constraint, draw_constraints
from fourfold.demo.tasks.vision import COLOURS, MOTIONS, SHAPES, SIDE

CHECKED = [name for name in TASKS if name != "prose"]

#: SHA-256 over the first 20 test problems of seed 0: a change to a generator changes every figure ever measured.
FINGERPRINTS = {
    "math": "3135dd3b740e69562d044365685b7b6c6581bfed1f55b896af1b0b0b3bafb8ce",
    "instruct": "22f5dee8e26fb2bdba7212eda7c051f6667c532d8506377c4400fb9a82ce8f4c",
    "vision": "397b8700160e41b22c9b35e00c0dbfab40abb7833cc19226d8139a99535f3ea0",
    "clip": "62e4377e32ff7827002400c89a00a431d5c73d0ab43d4a7574ef08665ce13fc8",
    "prose": "de3c5e9ddc55f56412260db086c9d58965aa405fc328e5f51a37c1c9b766bb39",
}


def fingerprint(problems: list[Problem]) -> str:
    digest = hashlib.sha256()
    for problem in problems:
        digest.update("\x00".join((problem.key, problem.system, problem.prompt, problem.target)).encode())
        if problem.render is not None:
            digest.update(problem.frames().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_gives_the_same_problems_for_ever(name: str) -> None:
    assert fingerprint(get_task(name).generate("test", 20, seed=0)) == FINGERPRINTS[name]


@pytest.mark.parametrize("name", TASKS)
def test_splits_are_disjoint_whatever_the_seed(name: str) -> None:
    keys = {split: {p.key for s in (0, 1) for p in get_task(name).generate(split, 300, seed=s)} for split in SPLITS}
    for split in SPLITS:
        assert {split_of(key) for key in keys[split]} == {split}
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["validation"] & keys["test"]


def test_the_key_of_arithmetic_is_its_chain_so_that_names_cannot_smuggle_a_held_out_problem_in() -> None:
    rng = Random(0)
    by_key: dict[str, set[str]] = {}
    for _ in range(40_000):
        problem = TASKS["math"].make(rng)
        by_key.setdefault(problem.key, set()).add(problem.prompt)
    retold = [key for key, prompts in by_key.items() if len(prompts) > 1]
    assert retold, "no chain was told twice, so the claim was not tested"
    for key in by_key:
        assert key.startswith("math:")
        assert not any(name in key for name in ("Tom", "Mia"))


@pytest.mark.parametrize("name", TASKS)
def test_generate_gives_distinct_problems(name: str) -> None:
    assert len({problem.key for problem in get_task(name).generate("test", 500)}) == 500


@pytest.mark.parametrize("name", CHECKED)
def test_reference_responses_satisfy_their_own_checker(name: str) -> None:
    task = get_task(name)
    for problem in task.generate("train", 400, seed=3):
        assert task.is_correct(problem, problem.target), problem


@pytest.mark.parametrize("name", CHECKED)
def test_another_problems_response_is_wrong(name: str) -> None:
    task = get_task(name)
    problems = task.generate("train", 300, seed=4)
    shifted = [p.target for p in problems[1:] + problems[:1]]
    accepted = sum(task.is_correct(p, response) for p, response in zip(problems, shifted, strict=True))
    assert accepted < 0.3 * len(problems)


def test_arithmetic_is_right_step_by_step() -> None:
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    for problem in get_task("math").generate("train", 400, seed=5):
        *lines, last = problem.target.splitlines()
        running = None
        for line in lines:
            left, symbol, right, _, result = line.split()
            assert running in (None, int(left))
            assert operations[symbol](int(left), int(right)) == int(result)
            assert symbol != "/" or int(left) % int(right) == 0
            running = int(result)
            assert 1 <= running <= 999
        assert last == f"#### {running}"
        assert 2 <= len(lines) == problem.metadata["num_steps"] <= 6


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 1,204\n", "1204"),
        ("#### 7 apples", None),
        ("7", None),
        ("#### 5\n#### 6", "6"),
        ("", None),
    ],
)
def test_the_answer_is_the_number_that_closes_the_response(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (Constraint("upper"), "THE SEA, 1.", "THE Sea."),
        (Constraint("lower"), "the sea.", "The sea."),
        (Constraint("no_comma"), "The sea is wide.", "The sea, wide."),
        (Constraint("end", text="The end."), "It rains. THE END.", "The end. It rains."),
        (Constraint("bullets", count=2), "* One.\n* Two.", "* One.\n* Two.\n* Three."),
        (Constraint("bullets", count=2), "* One.\n* Two.", "- One.\n- Two."),
        (Constraint("keyword", text="marble"), "A MARBLE fell.", "The marbles fell."),
        (Constraint("twice", text="marble", count=2), "A marble is a marble.", "A marble fell."),
        (Constraint("max_words", count=3), "One two three.", "One two three four."),
        (Constraint("min_words", count=3), "One two three.", "* One two."),
        (Constraint("quote"), '"The sea."', '"The sea.'),
        (Constraint("title"), "<<The Sea>>\nIt is wide.", "The <<Sea>> is wide."),
        (Constraint("title"), "<<The Sea>>\nIt is wide.", "<< >>\nIt is wide."),
        (Constraint("sentences", count=2), 'One. Two!"', "One. Two. Three."),
    ],
)
def test_each_instruction_is_verified_strictly(constraint: Constraint, good: str, bad: str) -> None:
    assert constraint.holds(good)
    assert not constraint.holds(bad)
    assert not constraint.holds("  ")


def test_every_kind_of_instruction_is_drawn_and_exclusions_are_mutual() -> None:
    rng = Random(1)
    drawn = [draw_constraints(rng) for _ in range(2000)]
    assert {constraint.kind for constraints in drawn for constraint in constraints} == set(KINDS)
    assert {len(constraints) for constraints in drawn} == {1, 2, 3}
    for name, kind in KINDS.items():
        for other in kind.excludes:
            assert name in KINDS[other].excludes, f"{name} excludes {other}, not the reverse"


@pytest.mark.parametrize("name", ["vision", "clip"])
def test_pictures_show_what_they_say(name: str) -> None:
    for problem in get_task(name).generate("train", 40, seed=6):
        frames = problem.frames()
        assert frames.shape == (4 if name == "clip" else 1, SIDE, SIDE, 3)
        paint = COLOURS[problem.metadata["colour"]]
        distance = abs(frames[0].astype(int) - paint).sum(axis=-1)
        assert (distance < 110).sum() > 40, "the colour covers too few pixels"


def test_a_clip_moves_the_way_it_says() -> None:
    for problem in get_task("clip").generate("train", 40, seed=7):
        paint = COLOURS[problem.metadata["colour"]]
        centres = []
        for frame in problem.frames():
            rows, columns = (abs(frame.astype(int) - paint).sum(axis=-1) < 110).nonzero()
            centres.append((columns.mean(), rows.mean()))
        moved = (centres[-1][0] - centres[0][0], centres[-1][1] - centres[0][1])
        dx, dy = MOTIONS[problem.metadata["motion"]]
        assert moved[0] * dx + moved[1] * dy > 8


@pytest.mark.parametrize("response", ["a red or blue circle", "a red circle square", "red", "circle", ""])
def test_naming_more_or_less_than_one_colour_and_shape_is_wrong(response: str) -> None:
    problem = Problem("vision", "k", "?", "", metadata={"colour": "red", "shape": "circle"})
    assert "red" in COLOURS
    assert "circle" in SHAPES
    assert not get_task("vision").is_correct(problem, response)
    assert get_task("vision").is_correct(problem, "It is a Red circle.")


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown demo task 'maths'; known: math, instruct, vision, clip, prose"):
        get_task("maths")
    with pytest.raises(ValueError, match=r"math: unknown split 'dev'; known: train, validation, test"):
        next(get_task("math").stream("dev", 0))
    with pytest.raises(ValueError, match=r"math: count must be 0 or more, got -1"):
        get_task("math").generate("test", -1)
    with pytest.raises(ValueError, match=r"math: a text problem has no frames"):
        held_out("math", 1)[0].frames()
    with pytest.raises(ValueError, match=r"prose is judged by perplexity"):
        get_task("prose").is_correct(held_out("prose", 1)[0], "text")


def test_importing_the_package_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, fourfold.demo; sys.exit(bool({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
