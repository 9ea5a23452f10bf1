"""Tasks over data: reading, splitting, templates, verifiers that end in time, and what a plan says of missing data."""

import json
import time
from dataclasses import replace

import pytest

from klsweep.cli import main
from klsweep.errors import BadInput
from klsweep.tasks import isolate
from klsweep.tasks.base import Item, Options, fingerprint, shared_prompts
from klsweep.tasks.choice import Choice
from klsweep.tasks.countdown import Countdown, Malformed, evaluate
from klsweep.tasks.isolate import isolated
from klsweep.tasks.jsonl import Jsonl
from klsweep.tasks.math import MAX_ANSWER, Math, grade_boxed, last_boxed, plain
from klsweep.tasks.source import hub_folder
from klsweep.tasks.template import render
from tests.hub import COMMIT, DATA, puzzles, source, store

SECONDS = 10.0  # of one verification, on a busy machine


def math_task(train="math_train.jsonl", evaluated="math500.jsonl", **fields) -> Math:
    rest = {"train_prompts": None, "eval_prompts": None, "template": "{{ problem }}", **fields}
    return Math(
        source=source(DATA / train, "solution") if train else None,
        eval_source=source(DATA / evaluated) if evaluated else None,
        max_response_tokens=64,
        seconds=SECONDS,
        **rest,
    )


def own_task(path, verifier="exact", pattern=None, **fields) -> Jsonl:
    rest = {"eval_source": None, "train_prompts": None, "eval_prompts": 1, "template": "{{ q }}", **fields}
    return Jsonl(
        source=source(path, "a"), max_response_tokens=64, verifier=verifier, pattern=pattern, seconds=SECONDS, **rest
    )


def test_training_and_evaluation_prompts_are_kept_apart():
    task = math_task()
    train, evaluated = ([item.prompt for item in items] for items in (task.train_items(), task.eval_items()))
    assert (len(train), len(evaluated)) == (5, 4)  # one of the six is evaluated, too
    assert not set(train) & set(evaluated)
    assert "Simplify $\\frac{18}{42}$." in evaluated
    assert [item.answer for item in task.train_items()] == ["54", "7", "\\text{P}", "37.5\\%", "(3,1)"]
    assert [item.answer for item in task.eval_items()] == ["18", "[-2,4]", "\\frac{\\sqrt{3}}{2}", "\\frac{3}{7}"]
    assert shared_prompts(task, task) == 0
    other = math_task(train="math500.jsonl", evaluated=None, eval_prompts=1)  # trains on what `task` evaluates
    assert shared_prompts(other, task) == 3


def test_without_an_evaluation_source_the_first_rows_are_held_out():
    task = math_task(evaluated=None, eval_prompts=2, train_prompts=3)
    assert [item.answer for item in task.eval_items()] == ["54", "\\dfrac{3}{7}"]
    assert [item.answer for item in task.train_items()] == ["7", "\\text{P}", "37.5\\%"]
    with pytest.raises(BadInput, match="train_prompts=9: the source has only 4 besides those evaluated"):
        math_task(evaluated=None, eval_prompts=2, train_prompts=9).train_items()
    with pytest.raises(ValueError, match="needs a source and eval_prompts"):
        math_task(evaluated=None)
    assert math_task(train=None).train_items() == ()


def test_data_are_their_content_whatever_file_holds_it(tmp_path):
    rows = [json.loads(line) for line in (DATA / "math_train.jsonl").read_text().splitlines()]
    copy = tmp_path / "elsewhere.jsonl"
    copy.write_text("\n\n".join(json.dumps(row) for row in rows))
    tables = tmp_path / "same.csv"
    lines = ['"' + '","'.join(str(v).replace('"', '""') for v in row.values()) + '"' for row in rows]
    tables.write_text("﻿" + "\n".join([",".join(rows[0]), *lines]))
    prints = {fingerprint(math_task(train=str(file))) for file in (DATA / "math_train.jsonl", copy, tables)}
    assert len(prints) == 1
    copy.write_text(copy.read_text().replace("84-30", "84 - 30").replace("{54}", "{55}"))
    fingerprint.cache_clear()
    assert fingerprint(math_task(train=str(copy), train_prompts=5)) not in prints


def test_subsets_where_and_parquet_of_a_fetched_dataset(hub):
    suite = source("cais/mmlu", subsets=("college_physics", "college_biology"), split="test")
    assert [row["answer"] for row in suite.rows()] == [1, 2, 3, 1]
    assert suite.commit() == COMMIT
    only = source("cais/mmlu", subsets=("college_physics",), split="test", where="answer=2")
    assert [row["choices"][2] for row in only.rows()] == ["Kinetic energy"]
    assert source("cais/mmlu", revision=COMMIT).commit() == COMMIT


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "data.json"}, "expected a file ending in .jsonl, .csv, .parquet, or a hub dataset"),
        ({"path": "cais/mmlu", "where": "subject"}, "where='subject': expected column=value"),
    ],
)
def test_what_no_source_can_be(fields, message):
    with pytest.raises(ValueError, match=message):
        source(**fields)


@pytest.mark.parametrize(
    ("name", "text", "answer", "message"),
    [
        ("none.jsonl", None, "a", "none.jsonl': no such file"),
        ("broken.jsonl", '{"q": 1}\n{"q": ', "q", "line 2 is not JSON"),
        ("list.jsonl", "[1]\n", "q", "line 1 is no JSON object"),
        ("other.csv", "x,y\n1,2\n", "a", r"no column 'a' \(columns: x, y\)"),
        ("broken.parquet", "PAR1", "a", "not a Parquet file"),
        ("latin.jsonl", b'{"q": "caf\xe9", "a": 1}\n', "a", "latin.jsonl': not UTF-8 .*position 10"),
        ("latin.csv", b"q,a\ncaf\xe9,1\n", "a", "latin.csv': not UTF-8"),
        ("long.csv", f"q,a\n{'x' * 200_000},1\n", "a", "field larger than field limit"),
        ("null.jsonl", '{"q": 1, "a": 0}\n{"q": 2, "a": null}\n', "a", "row 2 has no 'a', it is null"),
        ("short.csv", "q,a\n1,2\n3\n", "a", "row 2 has no 'a'"),
    ],
)
def test_what_cannot_be_read(name, text, answer, message, tmp_path):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=message):
        list(source(tmp_path / name, answer).rows())


def test_rows_that_are_left_out_may_have_no_answer(tmp_path):
    (tmp_path / "some.jsonl").write_text('{"q": 1, "a": null, "s": "x"}\n{"q": 2, "a": 7, "s": "y"}\n')
    assert [row["q"] for row in source(tmp_path / "some.jsonl", "a", where="s=y").rows()] == [2]


def test_an_error_of_a_template_names_the_source(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"q": "1", "a": 1}\n')
    with pytest.raises(BadInput, match=r"own\.jsonl': template: 'p' is undefined \(columns: q, a\)"):
        own_task(tmp_path / "own.jsonl", template="{{ p }}").eval_items()
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(BadInput, match=r"empty\.jsonl': no rows to evaluate on"):
        own_task(tmp_path / "empty.jsonl").eval_items()


def test_a_dataset_that_was_not_fetched(hub):
    for revision in (None, "v2"):
        with pytest.raises(BadInput, match="not on this machine, and reading does not download"):
            source("lab/unknown", revision=revision).commit()
    with pytest.raises(BadInput, match=r"default\.validation\.parquet is not on this machine"):
        list(source("HuggingFaceH4/MATH-500", split="validation").rows())


def test_templates_fill_in_columns_and_reach_nothing_else():
    row = {"question": "1 {{ 2 }} {% raw", "choices": ["x", "y"]}
    template = "{{ question }}:{% for c in choices %} {{ 'AB'[loop.index0] }}. {{ c }}{% endfor %}\n"
    assert render(template, row) == "1 {{ 2 }} {% raw: A. x B. y\n"
    for bad, message in (
        ("{{ problem }}", r"'problem' is undefined \(columns: question, choices\)"),
        ("{{ question.__class__.__mro__ }}", "unsafe"),
        ("{{ choices.append(1) }}", "unsafe"),
        ("{{ question", "template"),
        ("{{ 1 / 0 }}", "template: division by zero"),
        ("{{ range(10 ** 9) }}", "template: Range too big"),
    ):
        with pytest.raises(BadInput, match=message):
            render(bad, row)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so \\boxed{4}.", "4"),
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {x}", "x"),
        ("\\fbox{7}", "7"),
        ("\\boxed{\\left\\{1, 2\\right\\}}", "\\left\\{1, 2\\right\\}"),
        ("\\boxed{\\boxed{3}}", "\\boxed{3}"),
        ("\\boxed{5} and then \\boxed{6", "5"),
        ("} } \\boxed{9}", "9"),
        ("boxed{4}", None),
        ("", None),
    ],
)
def test_the_last_box_that_is_closed(text, found):
    assert last_boxed(text) == found


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("\\frac{3}{7}", "\\dfrac{3}{7}", True),
        ("\\frac{3}{7}", "\\frac{6}{14}", True),
        ("0.5", "\\frac{1}{2}", True),
        ("\\frac{\\sqrt{3}}{2}", "\\frac{3}{2\\sqrt{3}}", True),
        ("198\\%", "198", True),
        ("90^\\circ", "90", True),
        ("\\text{east}", "east", True),
        ("[-2,4]", "[-2, 4]", True),
        ("[-2,4]", "(-2,4)", False),
        ("(3,1)", "(1,3)", False),
        ("7", "-7", False),
        ("x+1", "1+x", True),
        ("1000", "1,000", True),
        ("\\text{P}", "\\text{Q}", False),
    ],
)
def test_answers_are_compared_as_mathematics(gold, answer, right):
    assert grade_boxed(gold, f"It is $\\boxed{{{answer}}}$.", SECONDS) == (right, answer, None)


def test_plain_forms_differ_where_answers_do():
    assert plain("\\dfrac{1}{2}\\%") == plain("\\frac{1}{2}") == "\\frac{1}{2}"
    assert len({plain(text) for text in ("\\leftarrow", "\\left(1\\right)", "\\text{a} b", "a", "$5.", "5\\,000")}) == 6


HOSTILE = {
    "power": "9**9**9",
    "power of powers": "9^{9^{9^{9}}}",
    "factorials": "9!!!!!!!!!",
    "brackets": "(" * 10_000 + "1" + ")" * 10_000,
    "braces": "{" * 10_000,
    "boxes": "\\boxed{" * 10_000 + "1" + "}" * 10_000,
    "nested fractions": "\\frac{1}{" * 120 + "2" + "}" * 120,
    "nested roots": "\\sqrt{" * 60 + "2" + "}" * 60,
    "unicode digits": "١٢٣ + ４",
    "bomb of macros": "\\def\\a{\\b\\b}\\def\\b{\\a\\a}\\a" * 5,
    "binomial": "\\binom{999999999}{499999999}",
    "sum": "\\sum_{k=1}^{10^{12}} \\frac{1}{k}",
    "integral": "\\int_0^{\\infty} e^{-x^{x^{x}}} dx",
    "megabytes": "x" * 3_000_000,
    "megabytes of digits": "7" * 3_000_000,
    "null bytes": "\x00\x01\ud800",
    "code": "__import__('os').system('touch /tmp/klsweep-was-here')",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_graded_in_bounded_time(name):
    """A second to verify, so at most that, the child's start, and what it takes to look for a box."""
    text = HOSTILE[name]
    isolated("klsweep.tasks.equivalence:equivalent", ["1", "1"], 60.0)  # started and loaded
    countdown = Item("p", json.dumps({"numbers": [1, 2, 3], "target": 6}))
    began = time.perf_counter()
    for response in (f"\\boxed{{{text}}}", text):
        grade = grade_boxed("\\frac{1}{2}", response, 1.0)
        assert grade.extracted is None or len(grade.extracted) <= MAX_ANSWER
        assert not grade.correct
    assert time.perf_counter() - began < 8.0
    began = time.perf_counter()
    assert not countdown_task().grade(countdown, f"<answer>{text}</answer>").correct
    assert not choice_task().grade(Item("p", "B"), f"\\boxed{{{text}}} answer is {text}").correct
    assert time.perf_counter() - began < 2.0
    assert isolated("klsweep.tasks.equivalence:equivalent", ["2", "1+1"], 60.0) == (True, None)


def test_a_verifier_that_hangs_dies_or_raises_is_an_error_and_is_replaced():
    began = time.perf_counter()
    assert isolated("time:sleep", [60], 0.5) == (None, "no verdict within 0.5 s")
    assert time.perf_counter() - began < 30
    assert isolated("os:_exit", [3], SECONDS) == (None, "the verifier's process ended with exit status 3")
    assert isolated("os:abort", [], SECONDS).error == "the verifier's process ended with exit status -6"
    assert isolated("math:sqrt", [-1], SECONDS).error == "ValueError: math domain error"
    assert isolated("builtins:bytearray", [10**11], SECONDS).error == "MemoryError: "
    assert isolated("builtins:print", ["{}"], SECONDS) == (None, None)  # what it prints is no reply
    assert isolated("math:sqrt", [9], SECONDS) == (3.0, None)
    assert isolated("no_such:thing", [], SECONDS).error == "ModuleNotFoundError: No module named 'no_such'"
    assert len(isolate._children) == 1


def test_errors_of_the_comparison_reach_the_grade():
    tower = "9^{9^{9^{9}}}"
    assert grade_boxed("2", f"\\boxed{{{tower}}}", 1.0) == (False, tower, "no verdict within 1 s")


def countdown_task(count: int = 12) -> Countdown:
    return Countdown(
        source=source("lab/puzzles", "target"),
        eval_source=None,
        train_prompts=None,
        eval_prompts=2,
        template="{{ nums }} {{ target }}",
        max_response_tokens=64,
    )


@pytest.mark.parametrize(
    ("expression", "value", "numbers"),
    [
        ("1+2*3", 7, [1, 2, 3]),
        ("(1+2)*3", 9, [1, 2, 3]),
        ("7/2*2", 7, [7, 2, 2]),
        (" - ( 4 - 6 ) ", 2, [4, 6]),
        ("8/(3-8/3)", 24, [8, 3, 8, 3]),
        ("--5", 5, [5]),
        ("10-3-2", 5, [10, 3, 2]),
        ("16/4/2", 2, [16, 4, 2]),
    ],
)
def test_countdown_expressions(expression, value, numbers):
    assert evaluate(expression) == (value, numbers)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("9**9**9", "expected a number"),
        ("9^9", "unexpected '\\^'"),
        ("(" * 10_000, "longer than 200"),
        ("(" * 99 + "1" + ")" * 99, "more than 20 nested"),
        ("-" * 99 + "1", "more than 20 nested"),
        ("١+2", "unexpected '١'"),
        ("²", "unexpected"),
        ("1/(2-2)", "division by zero"),
        ("1234567890", "at most 9 digits"),
        ("*".join(["99999999"] * 9), "beyond 1e"),
        ("1 2", "unexpected '2'"),
        ("(1", "not closed"),
        ("1)", "unexpected '\\)'"),
        ("", "expected a number"),
        ("1+2=3", "unexpected '='"),
        ("1.5*2", "unexpected '.'"),
        ("__import__('os')", "unexpected '_'"),
    ],
)
def test_countdown_refuses(expression, message):
    with pytest.raises(Malformed, match=message):
        evaluate(expression)


@pytest.mark.parametrize(
    ("response", "right", "extracted"),
    [
        ("<answer>(44 - 19) * 4</answer>", True, "(44 - 19) * 4"),
        ("<answer>1</answer> no: <answer> 4*(44-19) </answer>", True, "4*(44-19)"),
        ("<answer>100</answer>", False, "100"),  # not the numbers
        ("<answer>(44-19)*4*1</answer>", False, "(44-19)*4*1"),
        ("<answer>(44-19)*4 = 100</answer>", False, "(44-19)*4 = 100"),
        ("<answer>44+19+4</answer>", False, "44+19+4"),
        ("(44-19)*4", False, None),
        ("<answer>(44-19)*4", False, None),
    ],
)
def test_countdown_uses_each_number_once(response, right, extracted):
    item = Item("p", json.dumps({"numbers": [44, 19, 4], "target": 100}))
    assert countdown_task().grade(item, response) == (right, extracted, None)


def test_countdown_holds_the_first_puzzles_out(hub):
    store("lab/puzzles", None, "train", puzzles(12))
    task = countdown_task()
    assert [json.loads(item.answer)["target"] for item in task.eval_items()] == [11, 12]
    assert len(task.train_items()) == 10
    assert task.eval_items()[0].prompt == "[10, 4, 3] 11"


def choice_task(scored="letter", **fields) -> Choice:
    return Choice(
        source=None,
        eval_source=source(DATA / "mmlu_college.jsonl", where="subject=college_physics"),
        train_prompts=None,
        eval_prompts=None,
        template="{{ question }}",
        max_response_tokens=64,
        likelihood_template="{{ question }} {{ choices[0] }}? Answer:",
        scored=scored,
        **fields,
    )


def test_options_of_multiple_choice():
    task = choice_task()
    assert [item.answer for item in task.eval_items()] == ["B", "C"]
    question = task.eval_items()[1].prompt
    assert task.options(task.eval_items()[1]) == Options(f"{question} Momentum? Answer:", ("A", "B", "C", "D"), 2)
    assert choice_task("text").options(task.eval_items()[1]).texts == ("Momentum", "Mass", "Kinetic energy", "Charge")


def test_repeated_questions_are_evaluated_as_often_as_they_are_there(tmp_path):
    question = {"question": "Which?", "subject": "s", "choices": ["x", "y"], "answer": 0}
    rows = [question, question, {**question, "choices": ["y", "x"]}]
    file = tmp_path / "repeated.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = replace(choice_task(), eval_source=source(file), template="{{ question }} {{ choices }}")
    assert len(task.eval_items()) == 3
    assert task.options(task.eval_items()[2]).prompt == "Which? y? Answer:"
    blind = replace(task, template="{{ question }}")
    with pytest.raises(BadInput, match=r"'Which\?' is asked with different choices, which it does not show"):
        blind.options(blind.eval_items()[0])
    own = tmp_path / "train.jsonl"
    own.write_text("".join(json.dumps({"q": q, "a": 1}) + "\n" for q in ("e", "e", "t", "t", "e", "u")))
    split = own_task(own, eval_prompts=2)
    assert [item.prompt for item in split.eval_items()] == ["e", "e"]
    assert [item.prompt for item in split.train_items()] == ["t", "u"]


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("\\boxed{B}", "B"),
        ("\\boxed{\\text{(B)}}", "B"),
        ("A, so $\\boxed{\\text{B. 2 m/s}}$", "B"),
        ("\\boxed{b}", "B"),
        ("The answer is (B).", "B"),
        ("Answer: A. No, the answer is B", "B"),
        ("\\boxed{2}", None),
        ("\\boxed{Both}", None),
        ("**Answer:** B", "B"),
        ("The correct answer is: **C**.", "C"),
        ("The answer is (\nB)", "B"),
        ("the answer is a lot", None),
        ("The answer is B, and that answer is a good one", "B"),
        ("answer: I'd say", None),
        ("B", None),
    ],
)
def test_the_letter_a_response_ends_in(response, found):
    assert choice_task().grade(Item("p", "B"), response) == (found == "B", found, None)


def written(tmp_path, name="own.jsonl"):
    file = tmp_path / name
    file.write_text("".join(json.dumps({"q": f"q{i}", "a": i}) + "\n" for i in range(3)))
    return file


@pytest.mark.parametrize(
    ("verifier", "pattern", "response", "grade"),
    [
        ("exact", None, " 1\n", (True, "1", None)),
        ("exact", None, "it is 1", (False, "it is 1", None)),
        ("math", None, "\\boxed{2/2}", (True, "2/2", None)),
        ("regex", r"#### (\d+)", "#### 3 #### 1", (True, "1", None)),
        ("regex", r"\d+", "3", (False, "3", None)),
        ("regex", r"\d+", "none", (False, None, None)),
        ("tests.verifiers:half", None, "2", (True, "1", None)),
        ("tests.verifiers:half", None, "x", (False, None, "ValueError: could not convert string to float: 'x'")),
        ("tests.verifiers:plain", None, "1", (True, None, None)),
        ("tests.verifiers:number", None, "1", (False, None, "the verifier returned 0.5, not True or False (alone or")),
    ],
)
def test_verifiers_of_ones_own_data(verifier, pattern, response, grade, tmp_path):
    task = own_task(written(tmp_path), verifier, pattern)
    found = task.grade(Item("q1", "1"), response)
    assert found[:2] == grade[:2]
    assert (found.error or "").startswith(grade[2] or "")
    assert (found.error is None) == (grade[2] is None)


def test_a_pattern_that_never_ends_is_an_error(tmp_path):
    task = Jsonl(
        source=source(written(tmp_path), "a"),
        eval_source=None,
        train_prompts=None,
        eval_prompts=1,
        template="{{ q }}",
        max_response_tokens=9,
        verifier="regex",
        pattern="(a+)+$",
        seconds=0.5,
    )
    assert task.grade(Item("q", "1"), "a" * 60 + "b") == (False, None, "no verdict within 0.5 s")


JSONL = ["train", "task=jsonl", "eval=own", "task.source.answer=a", "task.template='{{ q }}'", "task.eval_prompts=1"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["task.source.path=none.jsonl"], "source path='none.jsonl': no such file"),
        (["task.source.path=own.jsonl", "task.source.answer=b"], "no column 'b' (columns: q, a)"),
        (["task.source.path=own.jsonl", "task.template='{{ x }}'"], "template: 'x' is undefined (columns: q, a)"),
        (
            ["task.source.path=own.jsonl", "task.verifier=approximate"],
            "verifier='approximate': choose from exact",
        ),
        (["task.source.path=own.jsonl", "task.verifier=regex"], "pattern=None: verifier=regex needs one"),
        (
            ["task.source.path=own.jsonl", "task.verifier=os:system"],
            "'os:system': only functions in klsweep are",
        ),
        (
            ["task.source.path=own.jsonl", "task.verifier=tests.no:f", "plugins=[tests]"],
            "task: 'tests.no:f': no package 'tests.no'",
        ),
        (
            ["task.source.path=own.jsonl", "task.verifier=tests.hub:X", "plugins=[tests]"],
            "'tests.hub:X': not a func",
        ),
        (["task.source.path=own.jsonl", "task.eval_prompts=3"], "train_prompts=None: the source has only 0"),
        ([], "task.source.path: has no default: give it a value"),
        (["task.source.path=lab/none"], "source path='lab/none' (revision main): not on this machine, and reading"),
        (
            ["task.source.path=own.jsonl", "eval.in_distribution=[math]"],
            "eval.in_distribution: no suite 'math' is",
        ),
    ],
)
def test_one_line_before_anything_runs(more, message, in_tmp, capsys):
    written(in_tmp)
    assert main([*JSONL, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (in_tmp / "sweeps").exists()


def test_fetch_writes_what_plans_then_read(tmp_path, monkeypatch, capsys):
    """The library reads a folder as it reads a hub repository; the hub itself is asked for a commit only."""
    from huggingface_hub import HfApi, constants

    from tests.hub import rows_of

    repository = tmp_path / "repo"
    repository.mkdir()
    (repository / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of("math500.jsonl")))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    asked = []

    def dataset_info(self, name, revision, timeout):
        asked.append((name, revision))
        return type("Info", (), {"sha": COMMIT})

    import datasets

    load = datasets.load_dataset
    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, subset, split, revision: load(str(repository), subset, split=split)
    )
    command = ["model=tiny", "task=math500", "eval=own", "task.eval_source.path=lab/problems"]
    assert main(["fetch", *command]) == 0
    assert asked == [("lab/problems", None)]
    assert f"lab/problems at {COMMIT}: {hub_folder('lab/problems') / COMMIT}" in capsys.readouterr().out
    assert list(source("lab/problems", split="test").rows()) == rows_of("math500.jsonl")
    assert main(["fetch", *command]) == 0
    assert len(asked) == 1  # what is here stays as it is
    assert main(["fetch", *command, "task.eval_source.split=validation"]) == 2
    assert "lab/problems' at 0123456789abcdef0123456789abcdef01234567, subset default, split validation: " in (
        capsys.readouterr().err
    )
