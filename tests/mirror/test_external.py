"""`klsweep sync` of external runs, against the same server: there once, marked, and whole."""

from pathlib import Path

import pytest

from klsweep.record.files import read_rows
from klsweep.record.folder import SweepFolder

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "import" / "trl.yaml"


@pytest.mark.slow
def test_external_runs_are_sent_with_their_marks_and_a_second_sync_sends_nothing(server, cli, tmp_path):
    server.gapless = False  # another trainer may log every 50 updates
    sweep = SweepFolder(tmp_path / "trl")
    assert cli("import", EXAMPLE, "--into", sweep.path).returncode == 0
    refused = cli("sync", sweep.path)
    assert refused.returncode == 2
    assert "--project: missing, and external runs name no W&B project" in refused.stderr
    first = cli("sync", sweep.path, "--project", "theirs")
    assert (first.returncode, first.stderr) == (0, ""), first.stdout
    assert first.stdout.splitlines()[0] == "ada/theirs: 4 runs: 4 sent; 8 rows sent"
    row = next(row for row in sweep.plan() if row["axes"]["estimator"] == "k3" and row["seed"] == 1)
    run = server.runs("theirs")[f"trl-{row['run_id']}"]
    assert run.facts["displayName"] == "k3 loss β=0.04 on_policy external seed 1"
    assert (run.facts["jobType"], run.facts["host"]) == ("external", "external")
    assert sorted(run.facts["tags"]) == ["done", "external"]
    assert run.config["origin"]["value"] == "external"
    logged = [[r["_step"], r["reward/mean"], r.get("eval/gsm8k/pass@1")] for r in run.history]
    recorded = read_rows(sweep.run(row["run_id"]).metrics)
    assert logged == [[r["update"], r["reward/mean"], r.get("eval/gsm8k/pass@1")] for r in recorded]
    again = cli("sync", sweep.path, "--project", "theirs")
    assert again.stdout.splitlines()[0] == "ada/theirs: 4 runs: 4 unchanged; 0 rows sent"
