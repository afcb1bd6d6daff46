"""The harness's tasks through our client, against the harness's own command line on the same answers."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.conftest import share
from eval.endpoint import FakeEndpoint, Payload, serving
from fourfold.demo import held_out
from fourfold.errors import EvaluationError
from fourfold.evaluate.request import EvalConfig
from fourfold.evaluate.run import evaluate
from fourfold.plugins import Registry
from fourfold.progress import NoProgress
from fourfold.results import EvalRecord

#: Instructions of IFEval that need neither sentence data nor a guess of the language.
_INSTRUCTIONS: list[list[tuple[str, dict[str, Any]]]] = [
    [("punctuation:no_comma", {})],
    [("length_constraints:number_words", {"relation": "at least", "num_words": 6})],
    [("keywords:existence", {"keywords": ["lantern"]}), ("punctuation:no_comma", {})],
    [("detectable_format:title", {})],
    [("startend:quotation", {}), ("keywords:forbidden_words", {"forbidden_words": ["lantern"]})],
    [("detectable_format:number_bullet_lists", {"num_bullets": 2})],
    [("startend:end_checker", {"end_phrase": "That is all."}), ("keywords:existence", {"keywords": ["sea"]}),
     ("punctuation:no_comma", {})],
    [("detectable_format:json_format", {})],
    [("keywords:frequency", {"relation": "at least", "keyword": "sea", "frequency": 2})],
]  # fmt: skip
_REPLIES = (
    "The sea, the sea: a lantern on the shore.", '"A lantern hangs over the quiet sea"', "* one\n* two",
    "<<The sea>>\nIt rolls slowly at night under a lantern.", '{"sea": "lantern"}', "",
    "Sure!\nThe sea sleeps. That is all.",
)  # fmt: skip


def answer(payload: Payload) -> str:
    """Right, wrong, unmarked and unusual numbers for word problems; any of some replies for instructions."""
    text = payload["messages"][-1]["content"]
    pick = share(payload)
    if not text.startswith("Question:"):
        return _REPLIES[int(pick * len(_REPLIES))]
    known = {problem.prompt: problem.answer for problem in held_out("math", 40)}
    number = known[text.removeprefix("Question: ").removesuffix("\nAnswer:")]
    shapes = (
        "step by step\n#### {0}",
        "The answer is {0}.",
        "#### {0},000",
        "It is $1{0}. #### 1{0}",
        "none",
        "{0} or 7",
    )
    return shapes[int(pick * len(shapes))].format(number)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both benchmarks' files in small, in the hub's form."""
    folder = tmp_path_factory.mktemp("data")
    problems = [json.dumps({"question": p.prompt, "answer": p.target}) for p in held_out("math", 40)]
    (folder / "gsm8k_train.jsonl").write_text("\n".join(problems[30:]) + "\n")
    (folder / "gsm8k_test.jsonl").write_text("\n".join(problems[:30]) + "\n")
    records = [
        {
            "key": index,
            "prompt": f"Write something about the sea, please ({index}).",
            "instruction_id_list": [name for name, _ in _INSTRUCTIONS[index % len(_INSTRUCTIONS)]],
            "kwargs": [settings for _, settings in _INSTRUCTIONS[index % len(_INSTRUCTIONS)]],
        }
        for index in range(36)
    ]
    (folder / "ifeval.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FakeEndpoint]:
    with serving(FakeEndpoint(answer)) as running:
        yield running


def _harness_scores(python: Path, data: Path, folder: Path, url: str) -> dict[str, dict[str, float]]:
    """``lm-eval`` itself on the same files, which it is told of in its own way."""
    tasks = Path(next((python.parents[1] / "lib").glob("python*/site-packages/lm_eval/tasks")))
    files = {"gsm8k": {"train": "gsm8k_train.jsonl", "test": "gsm8k_test.jsonl"}, "ifeval": {"train": "ifeval.jsonl"}}
    for task, splits in files.items():
        lines = [f"include: {tasks / task / task}.yaml", "dataset_path: json", "dataset_name: null", "dataset_kwargs:"]
        lines += ["  data_files:", *(f"    {split}: {data / name}" for split, name in splits.items())]
        (folder / f"{task}.yaml").write_text("\n".join(lines) + "\n")
    command = [
        str(python), "-m", "lm_eval", "run", "--model", "local-chat-completions", "--apply_chat_template",
        "--model_args", f"base_url={url}/v1/chat/completions,model=fake-model,num_concurrent=4",
        "--tasks", f"{folder / 'gsm8k.yaml'},{folder / 'ifeval.yaml'}", "--output_path", str(folder / "out.json"),
    ]  # fmt: skip
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(next(folder.glob("**/out*.json")).read_text())["results"]
    return {task: {k: v for k, v in results[task].items() if "," in k and "_stderr" not in k} for task in files}


_NAMES = {
    "exact_match,strict-match": "strict-match", "exact_match,flexible-extract": "flexible-extract",
    "prompt_level_strict_acc,none": "prompt-strict", "prompt_level_loose_acc,none": "prompt-loose",
    "inst_level_strict_acc,none": "inst-strict", "inst_level_loose_acc,none": "inst-loose",
}  # fmt: skip


def test_scores_are_those_of_the_harness_itself(
    endpoint: FakeEndpoint, data: Path, tmp_path: Path, registry: Registry, environments: dict[str, Path]
) -> None:
    """Exactly: the same requests in every particular, and every metric to the last bit."""
    theirs = _harness_scores(environments["eval"], data, tmp_path, endpoint.url)
    asked_by_harness, endpoint.asked = endpoint.asked, []
    record = _evaluate(registry, endpoint, data, tmp_path / "out")
    ours = {task.task: {metric.name: metric.score for metric in task.metrics} for task in record.tasks}
    assert ours == {task: {_NAMES[key]: score for key, score in found.items()} for task, found in theirs.items()}
    assert _comparable(endpoint.asked) == _comparable(asked_by_harness)
    assert len(endpoint.asked) == 66
    # Nothing is shown by scores that are all alike.
    scores = [score for found in ours.values() for score in found.values()]
    assert len({*scores}) >= 5 and 0 < min(scores) < max(scores) < 1
    ifeval = record.task("ifeval")
    assert ifeval is not None
    assert (ifeval.metric("inst-strict").n, ifeval.metric("prompt-strict").n) == (52, 36)
    assert all(metric.per_prompt and metric.interval for task in record.tasks for metric in task.metrics)
    assert {
        "version": record.tasks[0].details["versions"]["gsm8k"], "few": record.tasks[0].details["num_fewshot"]["gsm8k"],
    } == {"version": 3.0, "few": 5}  # fmt: skip


def _evaluate(registry: Registry, endpoint: FakeEndpoint, data: Path, output: Path, **settings: Any) -> EvalRecord:
    given = {"model": endpoint.url, "tasks": ["gsm8k", "ifeval"], "data": data, "output": output} | settings
    return evaluate(EvalConfig.parse(given, where=""), registry, NoProgress())


def _comparable(asked: list[Payload]) -> list[str]:
    """Requests without what means nothing: the order of keys, and an empty list of stops."""
    return sorted(json.dumps({k: v for k, v in each.items() if v != []}, sort_keys=True) for each in asked)


def _broken(record: dict[str, Any], field: str) -> str:
    return json.dumps({key: value for key, value in record.items() if key != field})


@pytest.mark.parametrize(
    ("name", "line", "spoil", "message"),
    [
        ("gsm8k_test.jsonl", 4, lambda r: _broken(r, "answer"), "gsm8k_test.jsonl:4: field 'answer' is missing"),
        ("gsm8k_train.jsonl", 2, lambda r: json.dumps(r | {"question": 3}), "_train.jsonl:2: .* should be a str"),
        ("gsm8k_test.jsonl", 1, lambda r: json.dumps(r | {"answer": "5"}), "does not end in '#### NUMBER'"),
        ("ifeval.jsonl", 7, lambda r: _broken(r, "kwargs"), "ifeval.jsonl:7: field 'kwargs' is missing"),
        ("ifeval.jsonl", 3, lambda r: json.dumps(r | {"kwargs": []}), ":3: 2 instruction_id_list but 0 kwargs"),
        ("ifeval.jsonl", 36, lambda r: "{", "ifeval.jsonl:36: not valid JSON"),
        ("ifeval.jsonl", 2, lambda r: "[]", "ifeval.jsonl:2: a list, where an object is expected"),
    ],
)  # fmt: skip
def test_a_data_file_with_a_fault_is_named_with_its_line(
    data: Path, tmp_path: Path, name: str, line: int, spoil: Callable[[dict[str, Any]], str], message: str
) -> None:
    """The check itself; that a run ends with it is shown below."""
    from fourfold_eval.harness.data import GSM8K, IFEVAL

    for path in data.glob("*.jsonl"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lines = (tmp_path / name).read_text().splitlines()
    lines[line - 1] = spoil(json.loads(lines[line - 1]))
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(EvaluationError, match=message):
        (GSM8K if name.startswith("gsm8k") else IFEVAL).find(tmp_path)


def test_a_data_file_is_read_as_the_harness_reads_it(data: Path, tmp_path: Path) -> None:
    """A line ends at a newline alone, and blank ones are none."""
    from fourfold_eval.harness.data import GSM8K

    record = json.dumps({"question": "one\u2028and one", "answer": "#### 2"}, ensure_ascii=False)
    for name in GSM8K.files.values():
        (tmp_path / name).write_bytes(f"\ufeff{record}\r\n\n{record}\n\n".encode())
    assert set(GSM8K.find(tmp_path)) == {"train", "test"}
    (tmp_path / "gsm8k_test.jsonl").write_bytes(b"\n")
    with pytest.raises(EvaluationError, match=r"gsm8k_test\.jsonl: empty"):
        GSM8K.find(tmp_path)
    (tmp_path / "gsm8k_test.jsonl").write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(EvaluationError, match=r"gsm8k_test\.jsonl:1: not UTF-8 \(byte 0xff at column 15\)"):
        GSM8K.find(tmp_path)


def test_faults_come_back_from_the_harness_before_anything_is_asked(
    endpoint: FakeEndpoint, data: Path, tmp_path: Path, registry: Registry
) -> None:
    endpoint.asked.clear()
    (tmp_path / "gsm8k_train.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n{"question": "q"}\n')
    (tmp_path / "gsm8k_test.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n')
    with pytest.raises(EvaluationError, match=r"gsm8k_train.jsonl:2: field 'answer' is missing"):
        _evaluate(registry, endpoint, tmp_path, tmp_path / "out", tasks=["gsm8k"])
    with pytest.raises(EvaluationError, match=r"ifeval.jsonl: not there; --data needs ifeval.jsonl"):
        _evaluate(registry, endpoint, tmp_path, tmp_path / "out", tasks=["ifeval"])
    assert endpoint.asked == []


def test_an_unknown_task_lists_near_ones_of_the_harness(
    endpoint: FakeEndpoint, tmp_path: Path, registry: Registry
) -> None:
    with pytest.raises(EvaluationError, match=r"unknown task 'gsm8k_cot_lama'; near names: gsm8k_cot_llama"):
        _evaluate(registry, endpoint, tmp_path, tmp_path / "out", tasks=["gsm8k_cot_lama"])


def test_sentence_data_that_is_missing_is_said_before_asking(
    endpoint: FakeEndpoint, data: Path, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IFEval's two instructions that need NLTK's data stop the run where it is neither here nor to be had."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "none"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    lines = (data / "ifeval.jsonl").read_text().splitlines()
    needing = json.loads(lines[0]) | {
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{"relation": "at least", "num_sentences": 2}],
    }
    (tmp_path / "ifeval.jsonl").write_text("\n".join([*lines[1:4], json.dumps(needing)]) + "\n")
    with pytest.raises(EvaluationError, match=r"ifeval: 1 of 4 prompts .* need NLTK's punkt_tab, which is not here"):
        _evaluate(registry, endpoint, tmp_path, tmp_path / "out", tasks=["ifeval"])
    record = _evaluate(registry, endpoint, tmp_path, tmp_path / "without", tasks=["ifeval"], limit=3)
    assert record.tasks[0].prompts == 3


@pytest.mark.skipif("FOURFOLD_DATA" not in os.environ, reason="FOURFOLD_DATA names no folder with GSM8K and IFEval")
def test_the_published_data_files_are_accepted_in_full(tmp_path: Path, registry: Registry) -> None:
    """Every prompt of GSM8K becomes a request; of IFEval those that need no sentence data."""
    folder = Path(os.environ["FOURFOLD_DATA"])
    with serving(FakeEndpoint(lambda _payload: "#### 18")) as running:
        record = _evaluate(registry, running, folder, tmp_path / "out", tasks=["gsm8k"], limit=1319)
    assert record.tasks[0].prompts == 1319
    assert 0 < (record.tasks[0].metric("strict-match").score or 0) < 0.05
