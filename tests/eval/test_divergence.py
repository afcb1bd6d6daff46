"""KL against BF16: the kernel against the formula on whole distributions, and the whole path against a known model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval.conftest import Run
from eval.tiny_model import TOP, VOCABULARY, TinyModel, softmax
from fourfold.errors import EvaluationError
from fourfold_eval.divergence.kernel import NO_TOKEN, Distributions, divergence


def true_kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The definition, on whole distributions [T, V]."""
    return (p * np.log(p / q)).sum(axis=1)


def top_of(p: np.ndarray, k: int) -> Distributions:
    ids = np.argsort(-p, axis=1)[:, :k].astype(np.int32)
    return Distributions(ids, np.log(np.take_along_axis(p, ids, axis=1)).astype(np.float32))


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 3, size=(300, VOCABULARY))
    return softmax(logits), softmax(logits + rng.normal(0, 0.4, size=logits.shape))


def test_whole_vocabularies_give_the_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = pair
    found = divergence(top_of(p, VOCABULARY), top_of(q, VOCABULARY))
    np.testing.assert_allclose(found.kl, true_kl(p, q), atol=2e-6)
    assert (found.same_top == (p.argmax(1) == q.argmax(1))).all()
    assert 0 < (~found.same_top).sum() < 150
    assert (found.remainder == 0).all()


def test_tops_give_a_lower_bound_that_tightens_with_k(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """And the gap is what the module says: r_P times the divergence of the remainders."""
    p, q = pair
    before = np.zeros(len(p))
    for k in (1, 4, 16, 48):
        found = divergence(top_of(p, k), top_of(q, k))
        assert (found.kl <= true_kl(p, q) + 2e-6).all()
        assert found.kl.mean() > before.mean()
        before = found.kl
        for t in (0, 7, 100):
            known = np.isin(np.arange(VOCABULARY), np.argsort(-p[t])[:k])
            known &= np.isin(np.arange(VOCABULARY), np.argsort(-q[t])[:k])
            rest_p, rest_q = p[t][~known], q[t][~known]
            inside = (rest_p / rest_p.sum() * np.log(rest_p / rest_p.sum() / (rest_q / rest_q.sum()))).sum()
            assert found.remainder[t] == pytest.approx(rest_p.sum(), abs=1e-6)
            assert found.kl[t] + rest_p.sum() * inside == pytest.approx(true_kl(p, q)[t], abs=1e-5)


def test_rows_of_unequal_length_and_equal_models(pair: tuple[np.ndarray, np.ndarray]) -> None:
    p, _ = pair
    base = top_of(p, 5)
    longer = Distributions(
        np.pad(base.ids, ((0, 0), (0, 2)), constant_values=NO_TOKEN),
        np.pad(base.logprobs, ((0, 0), (0, 2)), constant_values=-np.inf),
    )
    found = divergence(base, longer)
    assert np.abs(found.kl).max() < 1e-5
    assert found.same_top.all()
    with pytest.raises(ValueError, match="300 positions against 2"):
        divergence(base, Distributions(base.ids[:2], base.logprobs[:2]))


def _expected(base: TinyModel, other: TinyModel) -> tuple[float, float, int]:
    """(KL, top-1 agreement, positions) of what was asked, by the definition."""
    total, same, count = 0.0, 0, 0
    for payload in base.asked:
        if "messages" not in payload:
            continue
        prompt, answer = TinyModel.prompt_ids(payload), base.answer_ids(payload)
        for before in [prompt[-1], *answer[:-1]]:
            p, q = softmax(base.logits[before]), softmax(other.logits[before])
            total += float((p * np.log(p / q)).sum())
            same += int(p.argmax() == q.argmax())
            count += 1
    return total / count, same / count, count


def test_the_whole_path_finds_the_models_true_divergence(run: Run, models: tuple[TinyModel, TinyModel]) -> None:
    base, other = models
    settings = {"tasks": ["kl"], "limit": 20, "options": {"kl.top_k": 0}}
    record = run(model=other.url, baseline=base.url, **settings)
    kl, top1, positions = _expected(base, other)
    task = record.task("kl")
    assert task is not None
    assert task.metric("kl").score == pytest.approx(kl, abs=1e-5)
    assert task.metric("top1").score == pytest.approx(top1)
    assert (task.metric("kl").n, task.metric("kl").prompts) == (positions, 20)
    interval = task.metric("kl").interval
    assert interval is not None and interval.low < kl < interval.high
    assert task.metric("tail").score == 0
    assert 0.5 < top1 < 1 and task.details["truncation"] == "none"


def test_tops_are_a_lower_bound_and_the_same_model_has_none(
    run: Run, models: tuple[TinyModel, TinyModel], tmp_path: Path
) -> None:
    base, other = models
    settings = {"tasks": ["kl"], "limit": 20, "options": {"kl.top_k": TOP}}
    run("base", model=base.url, **settings)
    baseline = str(tmp_path / "base")
    task = run("other", model=other.url, baseline=baseline, **settings).tasks[0]
    exact, _, _ = _expected(base, other)
    assert 0.3 * exact < (task.metric("kl").score or 0) < exact
    assert 0 < (task.metric("tail").score or 0) < 0.9
    asked = len(base.asked)
    same = run("same", model=base.url, baseline=baseline, **settings).tasks[0]
    assert same.metric("kl").score == pytest.approx(0, abs=1e-6)
    assert same.metric("top1").score == 1.0
    # The baseline's texts are made once; a further model is asked for its distributions alone.
    assert len(base.asked) - asked == 20


def test_what_does_not_belong_together_is_refused(
    run: Run, models: tuple[TinyModel, TinyModel], tmp_path: Path
) -> None:
    base, other = models
    run("base", model=base.url, tasks=["kl"], limit=3, options={"kl.top_k": TOP})
    baseline = str(tmp_path / "base")
    with pytest.raises(EvaluationError, match="kl: the baseline was measured with other options"):
        run("other", model=other.url, tasks=["kl"], limit=3, baseline=baseline)
    next((tmp_path / "base/measurements/kl/distributions").iterdir()).write_bytes(b"torn")
    with pytest.raises(EvaluationError, match=r"the distributions of prompt \d in .*base.* are missing, damaged or of"):
        run("torn", model=other.url, tasks=["kl"], limit=3, baseline=baseline, options={"kl.top_k": TOP})
    # The owner of the folder asks again for what is damaged, and for nothing else.
    asked = len(base.asked)
    run("base", model=base.url, tasks=["kl"], limit=3, options={"kl.top_k": TOP})
    assert len(base.asked) - asked == 1


@pytest.mark.parametrize("change", ["another", "made again", "top_k"])
def test_distributions_belong_to_the_tokens_they_were_measured_on(
    run: Run, models: tuple[TinyModel, TinyModel], tmp_path: Path, change: str
) -> None:
    """Another baseline, or the baseline's folder made again: the candidate's old files are of other texts."""
    base, other = models
    settings = {"tasks": ["kl"], "limit": 8, "options": {"kl.top_k": TOP}}
    first = second = "base"
    run(first, model=base.url, **settings)
    run("other", model=other.url, baseline=str(tmp_path / first), **settings)
    if change == "top_k":
        settings["options"] = {"kl.top_k": 0}
    else:
        base.place = 30
    if change == "another":
        second = "base2"
    else:
        (tmp_path / first / "measurements/kl/sequences.json").unlink()
    run(second, model=base.url, **settings)
    baseline = str(tmp_path / second)
    asked = len(other.asked)
    again = run("other", model=other.url, baseline=baseline, **settings).tasks[0]
    assert len(other.asked) - asked == 8
    assert again.metrics == run("fresh", model=other.url, baseline=baseline, **settings).tasks[0].metrics


def test_the_limit_may_grow_and_not_shrink(run: Run, models: tuple[TinyModel, TinyModel], tmp_path: Path) -> None:
    base, other = models
    both = {"model": other.url, "baseline": base.url, "tasks": ["kl"], "options": {"kl.top_k": TOP}}
    run(limit=3, **both)
    asked = [len(model.asked) for model in models]
    grown = run(limit=5, **both).tasks[0]
    assert [len(model.asked) - before for model, before in zip(models, asked, strict=True)] == [4, 2]
    assert grown.metrics == run("fresh", limit=5, **both).tasks[0].metrics
    with pytest.raises(EvaluationError, match=r"baseline/measurements/kl answers prompt 3, which is not asked now"):
        run(limit=3, **both)
    with pytest.raises(EvaluationError, match=r'kl was made with other options \(.*"top_k":6.*choose another --output'):
        run(limit=5, **both | {"options": {}})


def test_a_damaged_baseline_is_told_before_another_task_is_asked(
    run: Run, models: tuple[TinyModel, TinyModel], tmp_path: Path
) -> None:
    base, other = models
    settings = {"tasks": ["demo-math", "kl"], "limit": 2}
    run("base", model=base.url, **settings)
    next((tmp_path / "base/measurements/kl/distributions").iterdir()).unlink()
    with pytest.raises(EvaluationError, match="missing, damaged or of another text; evaluate kl on that model again"):
        run("other", model=other.url, baseline=str(tmp_path / "base"), **settings)
    assert other.asked == []
