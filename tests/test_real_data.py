"""Verifiers on real problems and real model responses, where they are present (KLSWEEP_DATA, or ../shared/data)."""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from klsweep.tasks.isolate import isolated
from klsweep.tasks.math import grade_boxed, last_boxed
from tests.conftest import planned

DATA = Path(os.environ.get("KLSWEEP_DATA") or Path(__file__).resolve().parent.parent.parent / "shared/data")
SECONDS = 20.0


def rows(name: str) -> list[dict]:
    if not (DATA / name).is_file():
        pytest.skip(f"no {name} in {DATA} (KLSWEEP_DATA names the folder)")
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def test_all_500_gold_solutions_are_right():
    found = rows("math500.jsonl")
    assert len(found) == 500
    grades = {row["unique_id"]: grade_boxed(row["answer"], row["solution"], SECONDS) for row in found}
    assert {name: grade for name, grade in grades.items() if not grade.correct or grade.error} == {}


@pytest.mark.slow
def test_math_verify_alone_finds_all_500_right_too():
    """Without the comparison of texts, which the gold solutions pass before math-verify is asked."""
    verify = "klsweep.tasks.equivalence:equivalent"
    wrong = [
        row["unique_id"]
        for row in rows("math500.jsonl")
        if isolated(verify, [row["answer"], last_boxed(row["solution"])], SECONDS) != (True, None)
    ]
    assert wrong == []


@pytest.mark.slow
def test_a_gold_answer_is_not_that_of_another_problem():
    """Each solution against the answer of the next problem in the file: right only where the two answers are equal."""
    found = rows("math500.jsonl")
    right = [
        (row["answer"], other["answer"])
        for row, other in pairwise(found)
        if grade_boxed(other["answer"], row["solution"], SECONDS).correct
    ]
    assert right == [("5", "x=5"), ("7", "7"), ("3", "3")]


def test_disagreements_with_another_projects_grader():
    """Those of docs/tasks.md, no more and no fewer: the gold answer 4:30 p.m., given as 4:30 \\text{ p.m.}"""
    found = rows("math_responses.jsonl")
    assert sum(len(row["responses"]) for row in found) == 400
    apart = []
    for row in found:
        for i, (response, score) in enumerate(zip(row["responses"], row["scores"], strict=True)):
            grade = grade_boxed(row["answer"], response, SECONDS)
            assert grade.error is None
            assert grade.extracted is not None
            if grade.correct != score:
                apart.append((row["answer"], grade.extracted, i, grade.correct, score))
    assert apart == [("\\text{4:30 p.m.}", "4:30 \\text{ p.m.}", i, True, False) for i in range(8)]


def test_a_plan_over_the_real_files():
    """Training and evaluation by local path: schemas of the hub's MATH-500 and MMLU."""
    assert rows("mmlu_college.jsonl")
    file, mmlu = DATA / "math500.jsonl", DATA / "mmlu_college.jsonl"
    suites = [f"mmlu_college_{subject}" for subject in ("physics", "chemistry", "biology")]
    plan = planned(
        "task=math",
        f"task.source.path={file}",
        f"task.eval_source.path={file}",
        "task.eval_prompts=200",
        "eval=paper",
        f"eval.suites.math500.eval_source.path={file}",
        "eval.suites.math500.eval_prompts=200",
        "~eval.suites.math_squared",
        "eval.in_distribution=null",
        *(f"eval.suites.{suite}.eval_source.path={mmlu}" for suite in suites),
    )
    spec = plan.runs[0].spec
    assert (len(spec.task.train_items()), len(spec.task.eval_items())) == (300, 200)
    assert [len(spec.eval.suites[suite].eval_items()) for suite in suites] == [102, 100, 144]
    assert plan.runs[0].row["suites"] == {"math500": "in", **dict.fromkeys(suites, "out")}
