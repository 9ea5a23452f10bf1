"""Commands that only read work on a sweep, and with a home, that nothing can be written to; those that write say so."""

import json
import os
import subprocess
import sys

import pytest

from klsweep.record.files import append_rows
from klsweep.record.rollouts import rollout_file
from tests.bundle.records import study
from tests.readonly import as_reader

SCRIPT = """
import contextlib, io, json, sys
from klsweep.cli import main
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""
RESPONSE = {"update": 0, "item": 0, "sample": 0, "prompt": "1+1=", "response": "2", "correct": True, "error": None}
RESPONSE |= {"extracted": "2", "truncated": False}


@pytest.mark.slow
def test_reading_commands_work_on_what_is_read_only(tmp_path):
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    elsewhere.mkdir()
    sweep = study(there / "study")
    run, other = sweep.run("b-0"), sweep.run("b-1")
    run.rollouts.mkdir()
    append_rows(rollout_file(run, "base"), [RESPONSE])
    for path in (*there.rglob("*"), there):
        path.chmod(path.stat().st_mode & ~0o222)
    place = str(sweep.path)
    expected = {  # what is said on stdout, of a command that works
        ("status", place): "5 done",
        ("status", place, "--json"): '"done": 5',
        ("status", place, "--html", str(elsewhere / "status.html")): "status.html",
        ("compare", place): "5 done, 1 failed",
        ("compare", place, "--json"): '"cell_id": "b"',
        ("compare", place, "--effects", "--format", "csv"): "loss",
        ("compare", place, "--html", str(elsewhere / "report.html")): "report.html",
        ("query", place, "SELECT count(*) AS n FROM metrics"): "24",
        ("inspect", str(run.path), "--json"): '"response": "2"',
        ("diff", str(run.path), str(other.path)): "equal configurations",
        ("logs", str(run.path)): "lab.py",
        ("clean", place, "--dry-run"): "would remove",
        ("plan", f"sweep_dir={place}", "wandb.mode=disabled"): "holds another sweep of 6 runs",
    }
    refused = {  # and on stderr, of one that cannot
        ("train", f"sweep_dir={place}"): "no folder that can be written to",
        ("bundle", place, f"{place}/b.zip"): f"{place} is no folder that can be written to",
        ("compare", place, "--cache", f"{place}/cache"): "cannot be written",
    }
    words = [*expected, *refused]
    environment = {name: value for name, value in os.environ.items() if name not in ("KLSWEEP_CACHE", "XDG_CACHE_HOME")}
    command = as_reader(sys.executable, "-c", SCRIPT, json.dumps(words))
    environment["HOME"] = str(there)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=elsewhere, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for asked, (code, out, err) in zip(words, found, strict=True):
        if asked in expected:
            assert (code, expected[asked] in out) == (0, True), (asked, code, out, err)
        else:
            assert (code, refused[asked] in err) == (2, True), (asked, code, out, err)
    assert "nothing is cached" in found[3][2]
