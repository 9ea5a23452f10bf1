"""`klsweep sync`, the real W&B client and its process wandb-core, against a server on the loopback."""

import base64
import json
import math
import os
import signal
import threading
import time
import urllib.error
import urllib.request

import pytest

from klsweep.record.files import read_rows
from tests.mirror.records import begin, finished, planned
from tests.mirror.wandb_server import KEY, TEAM, Refused, WandbServer, serving


def recorded(sweep, run_id):
    """The metrics rows of a run."""
    return list(read_rows(sweep.run(run_id).metrics))


def figures_there(run):
    """A W&B run's history as rows of metrics."""
    own = ("_step", "_runtime", "_timestamp")
    return [{"update": row["_step"], **{k: v for k, v in row.items() if k not in own}} for row in run.history]


def assert_exactly_the_record(server, sweep):
    runs = server.runs()
    assert sorted(runs) == sorted(f"{sweep.name}-{row['run_id']}" for row in sweep.plan())
    for row in sweep.plan():
        assert figures_there(runs[f"{sweep.name}-{row['run_id']}"]) == recorded(sweep, row["run_id"])
    assert server.refusals == []


def config(run):
    return {key: entry["value"] for key, entry in run.config.items() if not key.startswith("_")}


def test_every_run_is_there_once_with_all_its_rows_and_a_second_sync_sends_nothing(server, cli, tmp_path):
    sweep = finished(tmp_path / "mine")
    first = cli("sync", sweep.path, WANDB_MODE="offline")  # which is for training
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines() == ["ada/klsweep: 4 runs: 4 sent; 24 rows sent", f"{server.url}/ada/klsweep"]
    assert_exactly_the_record(server, sweep)
    run = server.runs()["mine-r1-b1"]
    assert run.facts["displayName"] == "k1 reward β=0.4 on_policy seed 1"
    assert (run.facts["groupName"], run.facts["jobType"], run.facts["host"]) == ("mine", "train", "node7")
    assert (run.facts["tags"], run.state) == (["done"], "finished")
    known = config(run)
    assert {
        "kl_coef": 0.4,
        "seed": 1,
        "train_lr": 0.0005,
        "choice_estimator": "k1",
        "cell_id": "c1-b",
    }.items() <= known.items()
    assert known["science_hash"] == "abc"
    assert not any("." in key or isinstance(value, dict) for key, value in known.items())
    assert run.summary["reward/mean"] == 1 / 3 + 5 / 7 + 1
    assert (run.summary["eval/add/pass@1"], run.summary["klsweep/state"]) == (0.7, "done")
    begun = sweep.run("r1-b1").attempts.claim(1)["time"]
    assert [row["_timestamp"] - begun for row in run.history] == pytest.approx([2, 4, 6, 8, 10, 12], abs=1e-5)

    server.operations.clear()
    second = cli("sync", sweep.path)
    assert second.stdout.startswith("ada/klsweep: 4 runs: 4 unchanged; 0 rows sent")
    assert second.returncode == 0
    assert set(server.operations) == {"Viewer", "GetViewer", "GetDefaultEntity", "Runs"}


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["the client", "the client and wandb-core", "by Ctrl-C"])
def test_a_sync_that_dies_in_the_middle_of_a_run_is_completed_by_the_next(dies, server, cli, tmp_path):
    sweep = finished(tmp_path / "mine", seeds=4, updates=40)
    reached, go_on, begun = threading.Event(), threading.Event(), []

    def take_half_of_the_sixth(run, body):
        if history := (body.get("files") or {}).get("wandb-history.jsonl"):
            begun.append(run)
            if len(begun) == 6:
                history["content"] = history["content"][:20]
                body["files"], body["complete"] = {"wandb-history.jsonl": history}, False

    def then_wait(run):
        if len(begun) >= 6:
            reached.set()
            go_on.wait(30)

    server.before_stream, server.after_stream = take_half_of_the_sixth, then_wait
    process = cli.start("sync", sweep.path)
    assert reached.wait(60)
    if dies == "the client":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL if dies == "the client and wandb-core" else signal.SIGINT)
    assert [len(run.history) for run in server.runs().values()].count(20) == 1
    server.before_stream, server.after_stream = lambda run, body: None, lambda run: None
    if dies == "by Ctrl-C":  # it lets the runs that it is sending end
        go_on.set()
        assert process.communicate(timeout=60)[1].endswith(
            "interrupted; the same command goes on where this one stopped\n"
        )
    process.communicate()
    go_on.set()
    if dies == "the client":
        time.sleep(1.0)  # wandb-core outlives it, and sends what it has
    again = cli("sync", sweep.path)
    assert again.returncode == 0, again.stdout
    assert_exactly_the_record(server, sweep)
    assert {run.state for run in server.runs().values()} == {"finished"}
    assert sum(run.resent for run in server.runs().values()) == 0
    assert {run.summary["probe/entropy"] for run in server.runs().values()} == {3.25}


def test_a_run_that_goes_on_gets_its_new_rows_only(server, cli, tmp_path):
    sweep = planned(tmp_path / "mine", seeds=1)
    work = begin(sweep, "r1-a0").update(0, 2)
    first = cli("sync", sweep.path, "--json")
    assert first.returncode == 0
    found = {run["run_id"]: run for run in json.loads(first.stdout)["runs"]}
    assert (found["r1-a0"]["outcome"], found["r1-a0"]["sent"]) == ("sent", 3)
    assert found["r1-b0"]["outcome"] == "nothing recorded"
    assert list(server.runs()) == ["mine-r1-a0"]
    run = server.runs()["mine-r1-a0"]
    assert (run.state, run.complete, run.facts["tags"]) == ("running", False, ["running"])

    run.facts["tags"] = ["running", "mine"]  # as a user may add one
    work.update(3, 5).end()
    offsets = []
    server.before_stream = lambda name, body: offsets.extend(
        [content["offset"] for file, content in (body.get("files") or {}).items() if file == "wandb-history.jsonl"]
    )
    assert "1 sent, 1 nothing recorded; 3 rows sent" in cli("sync", sweep.path).stdout
    assert offsets == [3]
    assert (run.steps, run.resent, run.state) == ([0, 1, 2, 3, 4, 5], 0, "finished")
    assert figures_there(run) == recorded(sweep, "r1-a0")
    assert (sorted(run.facts["tags"]), run.summary["klsweep/state"]) == (["done", "mine"], "done")
    assert (run.summary["eval/add/pass@1"], run.summary["klsweep/update"]) == (0.25, 5)


def test_states_and_causes_are_told_apart(server, cli, tmp_path):
    sweep = planned(tmp_path / "mine", seeds=2)
    begin(sweep, "r1-a0").update(0, 2).update(3, 3, loss=None).end("diverged", "update 3: loss = nan is not finite")
    begin(sweep, "r1-a1").update(0, 1).end("failed", "OutOfMemoryError: too much")
    begin(sweep, "r1-b0").update(0, 2).end("preempted", "checkpointed on SIGTERM")
    assert cli("sync", sweep.path).returncode == 0
    runs = server.runs()
    states = {name[-2:]: (run.state, run.facts["tags"], run.summary["klsweep/cause"]) for name, run in runs.items()}
    assert states == {
        "a0": ("finished", ["diverged"], "update 3: loss = nan is not finite"),
        "a1": ("failed", ["failed"], "OutOfMemoryError: too much"),
        "b0": ("failed", ["preempted"], "checkpointed on SIGTERM"),
    }
    assert math.isnan(runs["mine-r1-a0"].history[3]["loss"])
    begin(sweep, "r1-b0").update(3, 5).end()  # the next attempt, the same W&B run
    assert cli("sync", sweep.path).returncode == 0
    run = server.runs()["mine-r1-b0"]
    assert (len(runs), run.steps, run.state, run.facts["tags"]) == (3, [0, 1, 2, 3, 4, 5], "finished", ["done"])
    assert run.summary["klsweep/cause"] == ""


def test_a_torn_line_waits_and_a_damaged_record_is_named_while_others_are_sent(server, cli, tmp_path):
    sweep = finished(tmp_path / "mine", seeds=1)
    torn, damaged = sweep.run("r1-a0").metrics, sweep.run("r1-b0").metrics
    torn.write_text(torn.read_text()[:-30])
    lines = damaged.read_text().split("\n")
    damaged.write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]))
    result = cli("sync", sweep.path)
    assert result.returncode == 1
    assert f"r1-b0 (done): {damaged}, line 2 is not JSON" in result.stdout
    assert server.runs()["mine-r1-a0"].steps == [0, 1, 2, 3, 4]
    damaged.write_text("\n".join([lines[0], '{"reward/mean": 0.5}', *lines[2:]]))
    result = cli("sync", sweep.path)
    assert result.returncode == 1
    assert "r1-b0 (done): a row of its record is damaged (KeyError: 'update')" in result.stdout


def test_nothing_is_written_into_a_sweep_folder(server, cli, tmp_path):
    sweep = finished(tmp_path / "mine", seeds=1)
    before = {path: path.stat().st_mtime_ns for path in sweep.path.rglob("*")}
    assert cli("sync", sweep.path).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in sweep.path.rglob("*")} == before


def test_want_of_a_key_a_server_or_an_entity_is_one_line(server, cli, tmp_path):
    sweep = finished(tmp_path / "mine", seeds=1)
    cases = [
        (
            {"WANDB_API_KEY": ""},
            [],
            2,
            f"no W&B API key for {server.url}: `wandb login` asks for it, or set WANDB_API_KEY",
        ),
        ({"WANDB_API_KEY": "x" * 40}, [], 1, "user is not logged in"),
        ({}, ["--entity", "eve"], 2, "entity='eve': not one that this W&B API key may write to (choices: ada, lab)"),
    ]
    for environment, words, code, text in cases:
        result = cli("sync", sweep.path, *words, **environment)
        assert (result.returncode, result.stdout) == (code, "")
        assert result.stderr.startswith("klsweep: error: ")
        assert result.stderr.strip().endswith(text)
        assert result.stderr.count("\n") == 1
    assert server.projects == {}


@pytest.mark.slow
def test_a_server_that_is_away_is_one_line(cli, tmp_path):
    sweep = finished(tmp_path / "mine", seeds=1)
    result = cli("sync", sweep.path, WANDB_BASE_URL="http://127.0.0.1:9")
    expected = "klsweep: error: W&B at http://127.0.0.1:9 cannot be reached: [Errno 111] Connection refused\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", expected)


@pytest.mark.slow
def test_what_another_record_left_there_is_named_and_left_alone(server, cli, tmp_path):
    sweep = finished(tmp_path / "mine", seeds=1)
    assert cli("sync", sweep.path).returncode == 0
    run = server.runs()["mine-r1-a0"]
    run.summary["reward/mean"] += 0.01
    longer = server.runs()["mine-r1-b0"]
    longer.history.append({**longer.history[-1], "_step": 6})
    server.operations.clear()
    result = cli("sync", sweep.path)
    assert result.returncode == 1
    assert "2 incomplete" in result.stdout
    there, here = run.summary["reward/mean"], 1 / 3 + 5 / 7
    text = f"r1-a0 (done): at step 5, reward/mean is {there} there, {here} in the record"
    assert text in result.stdout
    assert "r1-b0 (done): it holds 7 rows, and 6 are recorded" in result.stdout
    assert "--project sends the run to another project" in result.stdout
    assert server.count("UpsertBucket") == 0
    other = cli("sync", sweep.path, "--project", "anew", "--entity", TEAM)
    assert other.returncode == 0
    assert [run.steps for run in server.runs("anew", TEAM).values()] == [[0, 1, 2, 3, 4, 5]] * 2


def test_rows_that_the_server_refuses_are_incomplete_and_sent_the_next_time(server, cli, tmp_path):
    sweep = finished(tmp_path / "mine", seeds=1)

    def refuse(run, body):
        if run == "mine-r1-a0" and "wandb-history.jsonl" in (body.get("files") or {}):
            raise Refused(400, "no")

    server.before_stream = refuse
    result = cli("sync", sweep.path, "--patience", "1")
    assert result.returncode == 1
    assert "r1-a0 (done): W&B holds 0 of 6 rows" in result.stdout
    server.before_stream = lambda run, body: None
    server.refusals.clear()
    assert cli("sync", sweep.path).returncode == 0
    assert_exactly_the_record(server, sweep)


def test_rows_that_the_server_has_not_counted_yet_are_waited_for(server, cli, tmp_path):
    sweep = planned(tmp_path / "mine", seeds=1)
    work = begin(sweep, "r1-a0").update(0, 3)
    assert cli("sync", sweep.path).returncode == 0
    work.update(4, 5).end()
    server.lag = 2
    assert cli("sync", sweep.path).returncode == 0
    run = server.runs()["mine-r1-a0"]
    assert (run.steps, run.resent, run.state) == ([0, 1, 2, 3, 4, 5], 0, "finished")


def test_watch_follows_a_run_to_its_end(server, cli, tmp_path):
    sweep = planned(tmp_path / "mine", seeds=1)
    work = begin(sweep, "r1-a0").update(0, 1)
    other = begin(sweep, "r1-b0").update(0, 5)
    other.end()
    process = cli.start("sync", sweep.path, "--watch", "--every", "0.2")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(server.projects and server.runs()) < 2:
        time.sleep(0.1)
    for update in range(2, 6):
        work.update(update, update)
        time.sleep(0.5)
    work.end()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    run = server.runs()["mine-r1-a0"]
    assert (run.steps, run.resent, run.state) == ([0, 1, 2, 3, 4, 5], 0, "finished")
    assert server.runs()["mine-r1-b0"].resent == 0
    assert out.splitlines()[-2].startswith("ada/klsweep: 2 runs: ")


def test_rows_that_a_gpu_run_may_take_back_wait_for_its_checkpoint(server, cli, tmp_path):
    sweep = planned(tmp_path / "mine", seeds=1)
    work = begin(sweep, "r1-a0", device="cuda").update(0, 4)
    checkpoint = work.folder.checkpoints / "update-000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    result = cli("sync", sweep.path)
    assert result.returncode == 0
    assert "r1-a0 (running): 1 rows wait for the next checkpoint" in result.stdout
    assert server.runs()["mine-r1-a0"].steps == [0, 1, 2, 3]
    work.update(5, 5).end()
    assert cli("sync", sweep.path).returncode == 0
    assert server.runs()["mine-r1-a0"].steps == [0, 1, 2, 3, 4, 5]


def test_an_evaluation_is_synced_under_the_name_of_its_sweep(cli, tmp_path, server):
    server.gapless = False
    sweep = planned(tmp_path / "mine" / "evaluations" / "e1-77", seeds=1, evaluates={"run_id": "r1-a0", "update": 5})
    begin(sweep, "r1-a0").update(0, 0).update(5, 5).end()
    assert cli("sync", sweep.path).returncode == 0
    run = server.runs()["mine-e1-77-r1-a0"]
    assert (run.steps, run.facts["jobType"], run.facts["groupName"]) == ([0, 5], "evaluate", "mine-e1-77")


def test_two_sweeps_of_one_name_are_refused(cli, tmp_path, server):
    one, two = finished(tmp_path / "x" / "mine", seeds=1), finished(tmp_path / "y" / "mine", seeds=1)
    other = finished(tmp_path / "other", seeds=1)
    assert cli("sync", one.path, other.path).returncode == 0
    assert len(server.runs()) == 4
    result = cli("sync", one.path, two.path)
    assert result.returncode == 2
    assert "mine-r1-a0: the W&B id of runs of two of these sweeps" in result.stderr


def test_the_server_of_these_tests_refuses_what_a_record_would_not_send():
    def post(path, content, key=KEY):
        request = urllib.request.Request(server.url + path, json.dumps(content).encode())
        request.add_header("Authorization", "Basic " + base64.b64encode(f"api:{key}".encode()).decode())
        try:
            return urllib.request.urlopen(request).status
        except urllib.error.HTTPError as error:
            return error.code

    def history(offset, *steps, **more):
        lines = [json.dumps({"_step": step, **more}) for step in steps]
        return post(
            "/files/ada/p/x/file_stream", {"files": {"wandb-history.jsonl": {"offset": offset, "content": lines}}}
        )

    with serving(WandbServer()) as server:
        assert history(0, 0) == 404  # never announced
        upsert = {
            "query": "mutation UpsertBucket ($id: ID) {}",
            "variables": {"name": "x", "project": "p", "entity": "ada"},
        }
        assert post("/graphql", upsert, key="y" * 40) == 401
        assert post("/graphql", upsert) == 200
        assert history(0, 1) == 400  # begins late
        assert history(0, 0, 1) == 200
        assert history(3, 3) == 400  # leaves a line out
        assert history(2, 3) == 400  # leaves a step out
        assert history(2, 1) == 400  # goes back
        assert history(1, 1) == 200  # again, the same
        assert history(1, 1, loss=1.0) == 400  # again, another
        run = server.runs("p")["x"]
        assert (run.steps, run.resent) == ([0, 1], 1)
