"""The arithmetic tasks: right answers, exact verification, seeds, and no prompt on both sides."""

import pytest

from klsweep.tasks.arithmetic import OPERATIONS, Arithmetic
from klsweep.tasks.base import Item, fingerprint
from klsweep.tasks.reward import Verifier


def task(operation: str, train: int = 500, evaluation: int = 64, seed: int = 0) -> Arithmetic:
    return Arithmetic(
        operation=operation,  # pyright: ignore
        train_prompts=train,
        eval_prompts=evaluation,
        seed=seed,
        max_response_tokens=8,
    )


def _solve(prompt: str) -> str:
    """Another way to the answers, from the prompt alone."""
    body = prompt.removesuffix("=")
    if "+" in body or "-" in body:
        sign = "+" if "+" in body else "-"
        left, right = body.split(sign)
        return str(int(left) + int(sign + right))
    name, _, rest = body.partition(" ")
    if name == "max":
        return str(sorted(int(n) for n in rest.split())[-1])
    return "".join(reversed(rest)) if name == "rev" else "".join(sorted(rest))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_answers_are_right_and_fit(operation):
    items = [*task(operation).train_items(), *task(operation).eval_items()]
    assert len(items) == 564
    assert all(item.answer == _solve(item.prompt) for item in items)
    assert max(len(item.answer) for item in items) < task(operation).max_response_tokens  # room for the end token


@pytest.mark.parametrize("operation", OPERATIONS)
def test_train_and_eval_prompts_are_disjoint_and_distinct(operation):
    chosen = task(operation, train=4096)
    train, evaluation = ({item.prompt for item in items} for items in (chosen.train_items(), chosen.eval_items()))
    assert len(train) == 4096
    assert len(evaluation) == 64
    assert not train & evaluation


def test_the_data_seed_alone_decides_the_items():
    assert task("add").eval_items() == task("add").eval_items()
    assert task("add").eval_items() != task("add", seed=1).eval_items()
    prints = {fingerprint(task("add")), fingerprint(task("add", seed=1)), fingerprint(task("sort"))}
    assert len(prints) == 3
    assert fingerprint(task("add", train=499)) not in prints


def test_verification_is_exact_and_rewards_have_the_values_asked_for():
    item, reward = Item("3+4=", "7"), Verifier(correct=2.0, incorrect=-1.0)
    grades = [task("add").grade(item, text) for text in ("7", "07", " 7", "8", "")]
    assert [grade.correct for grade in grades] == [True, False, False, False, False]
    assert [reward(item, grade.extracted or "", grade) for grade in grades] == [2.0, -1.0, -1.0, -1.0, -1.0]


def test_too_few_prompts_is_said_before_training():
    with pytest.raises(ValueError, match="distinct prompts"):
        task("subtract", train=6000)
