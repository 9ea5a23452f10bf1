"""W&B: real offline files by default, one warning when it fails, nothing when it is disabled."""

import builtins

import pytest

from klsweep.tracking import Tracker, Wandb, flush


def test_offline_writes_real_files_with_flat_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = Tracker.start(
        Wandb(mode="offline", project="p", entity=None), tmp_path, "r1-abc", "my-sweep", {"kl.coef": 0.1}
    )
    tracker.log(0, {"reward/mean": 0.5})
    tracker.finish(0)
    flush()
    files = list(tmp_path.glob("wandb/offline-run-*-r1-abc/run-r1-abc.wandb"))
    assert len(files) == 1
    content = files[0].read_bytes()
    for text in (b"kl_coef", b"reward/mean", b"my-sweep", b"r1-abc"):
        assert text in content


def test_disabled_writes_nothing_and_imports_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(builtins, "__import__", _without_wandb(builtins.__import__))
    tracker = Tracker.start(Wandb(mode="disabled", project="p", entity=None), tmp_path, "r", "g", {})
    tracker.log(0, {"x": 1.0})
    tracker.finish(0)
    assert list(tmp_path.iterdir()) == []


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
        tracker = Tracker.start(settings, tmp_path, "r", "g", {})
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
