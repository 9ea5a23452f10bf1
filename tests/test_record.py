"""The run folder: atomic files, torn lines, exclusive claims, truthful states."""

import json
import os
import subprocess
import sys
import threading

import pytest

from klsweep.record.claims import Owner, shared_artifact
from klsweep.record.files import append_rows, read_rows, truncate_rows
from klsweep.record.folder import RunFolder, SweepFolder


def folder(tmp_path) -> RunFolder:
    run = RunFolder(tmp_path / "r1-abc")
    run.path.mkdir()
    return run


def ended_process() -> Owner:
    """The identity of a process that has ended."""
    script = "from klsweep.record.claims import Owner; import json; print(json.dumps(Owner.me()._asdict()))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return Owner(**json.loads(out.stdout))


def test_a_torn_last_line_is_skipped_and_damage_elsewhere_is_not(tmp_path):
    path = tmp_path / "log.jsonl"
    append_rows(path, [{"update": 1, "x": 0.1 + 0.2}, {"update": 2, "x": float("nan")}])
    with path.open("a") as stream:
        stream.write('{"update": 3, "x"')
    assert list(read_rows(path)) == [{"update": 1, "x": 0.1 + 0.2}, {"update": 2, "x": None}]
    truncate_rows(path, 1)
    assert path.read_text() == '{"update": 1, "x": 0.30000000000000004}\n'
    path.write_text('{"update": 1}\n{"upd\n{"update": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        list(read_rows(path))
    assert list(read_rows(tmp_path / "absent.jsonl")) == []


def test_what_does_not_fit_on_the_disk_is_not_half_appended(tmp_path):
    path = tmp_path / "log.jsonl"
    append_rows(path, [{"update": 1}])
    size = path.stat().st_size
    script = (
        "import resource, signal, pathlib, sys; from klsweep.record.files import append_rows\n"
        f"signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 5},) * 2)\n"
        "append_rows(pathlib.Path(sys.argv[1]), [{'update': 2}])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert "OSError: [Errno 28]" in done.stderr
    append_rows(path, [{"update": 3}])
    assert list(read_rows(path)) == [{"update": 1}, {"update": 3}]


def test_a_damaged_turn_is_over_and_says_so(tmp_path):
    run = folder(tmp_path)
    assert run.claim() is not None
    (run.attempt(1) / "attempt.json").write_text("")
    assert run.status()["state"] == "failed"
    assert run.status()["cause"].endswith("attempt.json is damaged")
    assert run.claim() is not None


def test_claims_are_exclusive_and_numbered(tmp_path):
    run = folder(tmp_path)
    assert run.status()["state"] == "pending"
    first = run.claim(science_hash="abc")
    assert first is not None
    assert (first.number, run.status()["state"]) == (1, "running")
    assert run.claim() is None  # held by this very process, which is alive
    first.finish("failed", "ValueError: no", "Traceback …")
    assert (run.status()["cause"], run.status()["science_hash"]) == ("ValueError: no", "abc")
    second = run.claim()
    assert second is not None
    assert second.number == 2
    second.finish("done")
    assert run.claim() is None
    assert json.loads((run.attempt(1) / "attempt.json").read_text())["state"] == "failed"
    assert json.loads((run.attempt(2) / "attempt.json").read_text())["state"] == "done"


def test_of_many_claimants_at_once_one_wins(tmp_path):
    run, won = folder(tmp_path), []
    barrier = threading.Barrier(8)

    def claim() -> None:
        barrier.wait()
        attempt = run.claim()
        won.append(attempt and attempt.number)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won, key=str) == [1, *[None] * 7]
    assert [path.name for path in run.path.joinpath("attempts").iterdir()] == ["1"]


def test_a_vanished_process_is_seen_and_its_run_can_be_claimed_again(tmp_path):
    run = folder(tmp_path)
    path = str(run.path)
    script = f"from klsweep.record.folder import RunFolder; import pathlib; RunFolder(pathlib.Path({path!r})).claim()"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert run.status()["state"] == "failed"
    assert run.status()["cause"].startswith("vanished")
    again = run.claim()
    assert again is not None
    assert again.number == 2
    assert run.tries()[0]["cause"].startswith("vanished")  # the dead one's end is on record


def test_an_owner_elsewhere_is_never_declared_gone():
    me = Owner.me()
    assert not me.is_gone()
    assert me._replace(started="0").is_gone()  # the same process id, another process
    assert not me._replace(host="elsewhere", pid=1).is_gone()
    assert ended_process().is_gone()


def test_a_plan_keeps_its_order_and_the_last_row_of_a_run_holds(tmp_path):
    sweep = SweepFolder(tmp_path / "s")
    sweep.extend_plan([{"run_id": "a", "n": 1}, {"run_id": "b", "n": 1}])
    sweep.extend_plan([{"run_id": "c", "n": 2}, {"run_id": "a", "n": 2}])
    sweep.extend_plan([{"run_id": "a", "n": 2}])
    assert sweep.plan() == [{"run_id": "a", "n": 2}, {"run_id": "b", "n": 1}, {"run_id": "c", "n": 2}]
    assert len(sweep.plan_file.read_text().splitlines()) == 4


def test_planners_at_work_at_the_same_time_lose_nothing(tmp_path):
    script = (
        "import sys; from pathlib import Path; from klsweep.record.folder import SweepFolder\n"
        "for i in range(20):\n"
        "    SweepFolder(Path(sys.argv[1])).extend_plan([{'run_id': f'{sys.argv[2]}-{i}', 'text': 'x' * 3000}])\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "s"), str(n)]) for n in range(6)]
    assert [process.wait() for process in processes] == [0] * 6
    assert len(SweepFolder(tmp_path / "s").plan()) == 120


def test_a_shared_artefact_is_built_once_and_taken_over_from_the_dead(tmp_path):
    built = []

    def build(path) -> None:
        built.append(1)
        (path / "x").write_text("content")

    results = []
    threads = [
        threading.Thread(target=lambda: results.append(shared_artifact(tmp_path / "a", build, 0.01))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(built), len(results)) == (1, 4)
    assert (tmp_path / "a" / "x").read_text() == "content"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755
    claim = tmp_path / "claims/b/1"
    claim.mkdir(parents=True)
    (claim / "claim.json").write_text(json.dumps({"owner": ended_process()._asdict()}))
    assert shared_artifact(tmp_path / "b", build, 0.01).is_dir()
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "claims"]
    assert sorted(os.listdir(tmp_path / "claims/b")) == ["1", "2"]


def test_a_builder_that_fails_leaves_nothing(tmp_path):
    def fail(path) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        shared_artifact(tmp_path / "a", fail)
    assert os.listdir(tmp_path) == ["claims"]
    assert json.loads((tmp_path / "claims/a/1/end.json").read_text()) == {"built": False}


def test_a_line_torn_by_a_kill_costs_no_later_one(tmp_path):
    path = tmp_path / "plan.jsonl"
    append_rows(path, [{"a": 1}])
    with path.open("a") as stream:
        stream.write('{"a": 2, "b"')
    append_rows(path, [])
    assert list(read_rows(path)) == [{"a": 1}]
    append_rows(path, [{"a": 3}])
    append_rows(path, [{"a": 4}])
    assert list(read_rows(path)) == [{"a": 1}, {"a": 3}, {"a": 4}]
    path.write_text('{"a": 1}\n{"a": 2, "b"\n{"a": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("attempts", "made_by"),
    [
        ([("x", 0), ("y", 5)], "x+y"),  # y went on from x's update 5
        ([("x", 0), ("y", 0)], "y"),  # y began anew: nothing of x is left
        ([("x", 0), ("y", 5), ("z", 5)], "x+z"),  # y left no checkpoint
        ([("x", 0), ("y", None), ("z", 5)], "x+z"),  # y never began to train
        ([("x", 0), ("x", 5), ("x", 7)], "x"),
        ([("x", 0), ("y", 5), ("x", 7)], "x+y"),
    ],
)
def test_a_run_was_made_by_the_code_of_all_whose_updates_it_holds(tmp_path, attempts, made_by):
    run = folder(tmp_path)
    for code, start in attempts:
        attempt = run.claim(science_hash=code)
        assert attempt is not None
        if start is not None:
            attempt.note(resumed_from=start)
        attempt.finish("preempted")
    assert run.status()["science_hash"] == made_by
