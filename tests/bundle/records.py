"""A small study with the names of those who made it in every place that records have for names."""

import json
from pathlib import Path

import yaml

from klsweep.record.files import append_rows, write_json
from klsweep.record.folder import RunFolder, SweepFolder
from tests.analysis.records import plan_row, write_items, write_run, write_series

HOME = "/home/zoe_quill"
FOLDER = "/vault/zq-group/sweeps"  # an absolute path that says whose it is
NODE = "argon17.cluster.example"
# what an anonymous bundle must not say, in small letters
SECRETS = ("zoe_quill", "zq-group", "argon17", "cluster.example", "quantlab", "fastlane", "zoes-team", "zoe@mail.org")
SECRETS += ("471234", "d0d0cafe", "private note", "ñandú")
LOG = f"Traceback: {HOME}/lab.py\n"

CONFIG = {
    "seed": 0,
    "sweep_dir": f"{FOLDER}/study",
    "plugins": [],
    "wandb": {"project": "quantlab-kl", "entity": "zoes-team"},
    "launcher": {
        "partition": "fastlane",
        "account": "quantlab",
        "gpus_per_node": 1,
        "setup": ["module load quantlab"],
        "sbatch": {"mail-user": "zoe@mail.org"},
    },
}
LAUNCH = ["launcher.account=quantlab", "wandb.entity=zoes-team", f"sweep_dir={FOLDER}/study", "estimator=k1,k3"]
OWNER = {"host": NODE, "space": "private note", "pid": 9, "started": "1"}
JOB = {"id": "471234_5", "restart": 0, "nodes": 1}
FACTS = {"git": {"commit": "d0d0cafe", "diff": "", "untracked": "private note"}, "host": NODE, "python": "3.11.7"}
FACTS["packages"] = {"torch": "2.13.0"}


def study(path: Path) -> SweepFolder:
    """Three cells of two seeds, one run of which its cluster has lost."""
    sweep = SweepFolder(path)
    for cell, (placement, add) in {"a": ("none", 0.5), "b": ("loss", 0.7), "c": ("reward", 0.6)}.items():
        for seed in range(2):
            lost = (cell, seed) == ("c", 1)
            row = plan_row(cell, seed, placement=placement)
            write_run(sweep, row, "failed" if lost else "done", None if lost else add + seed / 30)
            _sign(sweep.run(row["run_id"]), lost)
    sweep.launches.write_text(yaml.safe_dump([{"time": "2026-01-01T00:00:00+00:00", "overrides": LAUNCH}]))
    copy = sweep.code / "0123456789ab"
    (copy / "zoe_quill").mkdir(parents=True)
    (copy / "source.json").write_text(json.dumps({"commit": "d0d0cafe", "diff": "private note", "untracked": ""}))
    (copy / "zoe_quill" / "lab.py").write_text(f"# by Zoe_Quill <zoe@mail.org>\nDATA = '{HOME}/data'\n")
    return sweep


def _sign(run: RunFolder, lost: bool) -> None:
    """What hosts and people leave in a run's folder."""
    write_series(run, {"reward/mean": [0.1, 0.25], "entropy": [1.0, 0.5]})
    write_items(run, "add", 3, [2, 3, 4])
    append_rows(run.evaluations / "sort.jsonl", [{"update": 3, "prompt_hash": "p", "greedy_response": f"{HOME} ñandú"}])
    run.config.write_text(yaml.safe_dump(CONFIG))
    write_json(run.environment, FACTS)
    claim = {**run.attempts.claim(1), "owner": OWNER, "node": NODE.split(".")[0], "job": JOB}
    write_json(run.attempt(1) / "claim.json", claim)
    if lost:
        end = {"state": "failed", "cause": "vanished: no heartbeat from argon17 for 300 s, job 471234_5"}
        write_json(run.attempt(1) / "attempt.json", {**end, "traceback": LOG, "ended": 2.0})
    write_json(run.path / "status.json", run.recorded())
    (run.attempt(1) / "stderr").write_text(LOG)
