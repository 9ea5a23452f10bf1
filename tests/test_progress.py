"""The progress of a local sweep."""

import io

from rich.console import Console

from klsweep import terminal
from klsweep.record.folder import SweepFolder
from klsweep.sweep.progress import SweepProgress


def test_updates_that_were_never_done_are_not_counted(tmp_path):
    sweep, said = SweepFolder(tmp_path), io.StringIO()
    rows = [{"run_id": name, "cell_id": "c", "seed": 0, "updates": 40, "axes": {}} for name in ("a", "b")]
    with SweepProgress(rows, {"c": "cell"}, Console(file=said, width=200)) as progress:
        progress.on_update(sweep.run("a"), 5, {})
        progress.on_end(sweep.run("a"), {"state": "failed", "cause": "no room"})
        progress.on_end(sweep.run("b"), {"state": "done"})
    assert "failed: cell seed 0: no room" in said.getvalue()
    assert "runs 2/2  updates 45/45  elapsed" in said.getvalue()


def test_what_takes_long_says_so_where_there_is_no_terminal(monkeypatch, capsys):
    with terminal.progress("pages", 3) as advance:
        advance(1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(terminal, "PLAIN_SECONDS", 0.0)
    with terminal.progress("pages", 3) as advance:
        advance(1)
    assert capsys.readouterr().err == "pages: 1/3 after 0 s\n"
