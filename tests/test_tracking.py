"""W&B: real offline files by default, one warning when it fails, nothing when it is disabled."""

import builtins
import re

import pytest

from klsweep.record.folder import RunFolder
from klsweep.tracking import Tracker, Wandb, flush, wandb_id


def a_run(folder):
    """A run folder `r1-abc` of the sweep `my-sweep`."""
    run = RunFolder(folder / "my-sweep" / "runs" / "r1-abc")
    run.path.mkdir(parents=True)
    return run


@pytest.mark.slow
def test_offline_writes_real_files_with_flat_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = a_run(tmp_path)
    tracker = Tracker.start(Wandb(mode="offline", project="p", entity=None), run, {"kl.coef": 0.1})
    tracker.log(0, {"reward/mean": 0.5})
    tracker.finish(0)
    flush()
    files = list(run.path.glob("wandb/offline-run-*-my-sweep-r1-abc/run-my-sweep-r1-abc.wandb"))
    assert len(files) == 1
    content = files[0].read_bytes()
    for text in (b"kl_coef", b"reward/mean", b"my-sweep", b"r1-abc"):
        assert text in content


def test_disabled_writes_nothing_and_imports_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(builtins, "__import__", _without_wandb(builtins.__import__))
    run = a_run(tmp_path)
    tracker = Tracker.start(Wandb(mode="disabled", project="p", entity=None), run, {})
    tracker.log(0, {"x": 1.0})
    tracker.finish(0)
    assert list(run.path.iterdir()) == []


def _without_wandb(real):
    def absent(name, *args, **kwargs):
        if name == "wandb":
            raise ImportError("No module named 'wandb'")
        return real(name, *args, **kwargs)

    return absent


@pytest.mark.parametrize("failure", ["absent", "log"])
def test_a_failure_is_one_warning_and_training_goes_on(failure, tmp_path, monkeypatch, capsys):
    settings = Wandb(mode="offline", project="p", entity=None)
    if failure == "absent":
        monkeypatch.setattr(builtins, "__import__", _without_wandb(builtins.__import__))
        tracker = Tracker.start(settings, a_run(tmp_path), {})
    else:

        class Broken:
            def log(self, *_, **__):
                raise OSError("disk full")

        tracker = Tracker(Broken())
    for update in range(3):
        tracker.log(update, {"x": 1.0})
    tracker.finish(0)
    error = capsys.readouterr().err
    assert error.count("warning: W&B is off for this run") == 1


def test_an_id_says_sweep_and_run_and_holds_only_what_w_and_b_takes(tmp_path):
    assert wandb_id(RunFolder(tmp_path / "mine" / "runs" / "r1-abc")) == "mine-r1-abc"
    evaluation = tmp_path / "mine" / "evaluations" / "e1-12" / "runs" / "r1-abc"
    assert wandb_id(RunFolder(evaluation)) == "mine-e1-12-r1-abc"
    odd = [wandb_id(RunFolder(tmp_path / name / "runs" / "r1-abc")) for name in ("a b", "a:b", "a-b", "β" * 200)]
    assert len(set(odd)) == 4
    assert all(re.fullmatch(r"[a-zA-Z0-9_.-]{1,128}", name) for name in odd)
    assert odd[0].endswith("-a-b-r1-abc")
