"""Bundles: made again elsewhere to the byte, every change noticed, nobody named, nothing unpacked out of its folder."""

import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from klsweep.bundle.archive import unpacked
from klsweep.bundle.contents import pack
from klsweep.bundle.manifest import MANIFEST
from klsweep.bundle.names import Names
from klsweep.cli import main
from klsweep.record.claims import Owner
from klsweep.record.files import append_rows, read_json, write_json
from klsweep.record.folder import SweepFolder
from tests.analysis.records import plan_row, write_run
from tests.bundle.records import HOME, LOG, SECRETS, study
from tests.readonly import as_reader

pytestmark = pytest.mark.slow

CHOICE = ("--baseline", "placement=none", "--columns", "runs,suites,out,trouble")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with the study, its bundles `plain.tar.gz` and `anonymous.zip`, and the files of that in `anonymous`."""
    folder = tmp_path_factory.mktemp("made")
    sweep = study(folder / "study")
    assert main(["bundle", str(sweep.path), str(folder / "plain.tar.gz"), *CHOICE]) == 0
    anonymous = ["--anonymous", "--strip", "Ñandú"]
    assert main(["bundle", str(sweep.path), str(folder / "anonymous.zip"), *CHOICE, *anonymous]) == 0
    with unpacked(folder / "anonymous.zip", folder / "anonymous", lambda done, of: None) as (root, manifest):
        assert (root, manifest.anonymous) == (folder / "anonymous", True)
    return folder


@pytest.fixture
def plain(made, tmp_path) -> Path:
    """The files of the plain bundle, to be changed."""
    with tarfile.open(made / "plain.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "klsweep-bundle"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_in_a_bundle(plain):
    found = files(plain)
    run = "records/study/runs/b-0"
    expected = {MANIFEST, "records/study/plan.jsonl", "records/study/sweep.yaml", "code/klsweep/analysis/stats.py"}
    expected |= {"code/source.json", "records/study/code/0123456789ab/zoe_quill/lab.py", f"{run}/config.yaml"}
    expected |= {f"{run}/{name}" for name in ("status.json", "env.json", "metrics.jsonl", "eval/add.jsonl")}
    expected |= {f"{run}/attempts/1/{name}" for name in ("claim.json", "attempt.json", "stderr")}
    expected |= {
        f"outputs/{name}{end}" for name in ("comparison", "effects") for end in (".md", ".tex", ".csv", ".json")
    }
    expected |= {"outputs/report.html", *(f"outputs/figures/in-out{end}" for end in (".png", ".svg", ".pdf"))}
    assert expected <= found.keys()
    manifest = json.loads(found[MANIFEST])
    assert manifest["files"].keys() == found.keys() - {MANIFEST}
    command = "klsweep compare records/study --baseline placement=none --columns runs,suites,out,trouble --format csv"
    assert manifest["outputs"]["outputs/comparison.csv"] == command
    assert found["outputs/comparison.md"].startswith(b"records/study: 3 cells, 6 runs: 5 done, 1 failed")
    assert "href" in found["outputs/report.html"].decode()
    assert str(plain.parent.parent).encode() not in b"".join(v for k, v in found.items() if k.startswith("outputs"))


def test_the_same_records_give_the_same_archive(made, tmp_path, monkeypatch):
    """Copied elsewhere, by a process in another folder, at another time."""
    shutil.copytree(made / "study", tmp_path / "there" / "study")
    monkeypatch.chdir(tmp_path / "there")
    assert main(["bundle", "study", "other.tar.gz", *CHOICE]) == 0
    assert Path("other.tar.gz").read_bytes() == (made / "plain.tar.gz").read_bytes()
    assert sorted(os.listdir()) == ["other.tar.gz", "study"]


ELSEWHERE = """
import socket, sys
sys.modules["torch"] = sys.modules["hydra"] = sys.modules["wandb"] = None
def refuse(*_): raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = refuse
from klsweep.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_it_is_made_again_elsewhere_to_the_byte(plain, tmp_path):
    """No torch, no network, other locale, time zone, home and matplotlibrc; the bundle a folder that is read-only."""
    home = tmp_path / "home"
    (home / ".config/matplotlib").mkdir(parents=True)
    (home / ".config/matplotlib/matplotlibrc").write_text("font.size: 20\nlines.color: red\n")
    environment = {**os.environ, "HOME": str(home), "TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONUTF8": "0"}
    environment |= {"PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    environment.pop("KLSWEEP_CACHE", None)
    for path in (*plain.rglob("*"), plain):
        path.chmod(path.stat().st_mode & ~0o222)
    command = as_reader(sys.executable, "-c", ELSEWHERE, "rebuild", str(plain), "--json")
    done = subprocess.run(command, capture_output=True, text=True, cwd=home, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"outputs/comparison.tex", "outputs/report.html", "outputs/figures/in-out.pdf"} <= {
        output["file"] for output in found["outputs"]
    }
    assert [output for output in found["outputs"] if not output["same"]] == []
    assert found["versions_that_differ"] == []


def test_a_changed_statistic_is_noticed(made, tmp_path, capsys, monkeypatch):
    from klsweep.analysis import stats

    monkeypatch.setattr(stats, "stdtrit", lambda freedom, p: 1.96)
    monkeypatch.setattr("klsweep.bundle.manifest.analysis_hash", lambda: "changed")
    assert main(["rebuild", str(made / "plain.tar.gz"), "--into", str(tmp_path / "new")]) == 1
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if "outputs/comparison.csv" in line]
    assert "differs, line 5: " in line
    (line,) = [line for line in shown.splitlines() if "outputs/figures/in-out.png" in line]
    assert "differs, byte " in line
    assert "likely because of other versions: code of the analysis" in shown
    assert "changed here" in shown
    now, then = (tmp_path / "new" / part / "outputs" / "comparison.md" for part in ("rebuilt", "."))
    assert "0.517 ±0.033" in now.read_text()  # 1.96 · 0.0236/√2
    assert "0.517 ±0.212" in then.read_text()  # 12.71 · 0.0236/√2


def changed(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)


def test_each_file_that_is_not_as_it_was_is_named(plain, capsys):
    run = "records/study/runs/a-0"

    def said() -> str:
        assert main(["rebuild", str(plain)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix(f"klsweep: error: {plain}: ")

    changed(plain, f"{run}/eval/add.jsonl")
    assert said() == f"{run}/eval/add.jsonl has been changed"
    (plain / "code/klsweep/cells.py").unlink()
    assert said() == "code/klsweep/cells.py is missing (and 1 other files are not as they were)"
    shutil.copy(plain / f"{run}/env.json", plain / "code/klsweep/cells.py")
    assert said().startswith("code/klsweep/cells.py has been changed (")
    (plain / run / "env.json").unlink()
    (plain / run / "env.json").symlink_to("/etc/passwd")
    assert said() == f"{run}/env.json is no plain file; nothing was unpacked"
    (plain / run / "env.json").unlink()
    manifest = json.loads((plain / MANIFEST).read_text())
    for name in ("code/klsweep/cells.py", f"{run}/env.json", f"{run}/eval/add.jsonl"):
        del manifest["files"][name]
    (plain / MANIFEST).write_text(json.dumps(manifest))
    assert said() == "code/klsweep/cells.py is not in the manifest (and 1 other files are not as they were)"
    manifest["format"] = 2
    (plain / MANIFEST).write_text(json.dumps(manifest))
    assert said() == "MANIFEST.json is damaged (format: Input should be 1)"


def test_a_changed_byte_of_an_archive_is_noticed(made, tmp_path, capsys):
    whole = (made / "plain.tar.gz").read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 1
    for name, content in {"flipped.tar.gz": broken, "half.tar.gz": whole[: len(whole) // 2], "text.zip": b"no"}.items():
        (tmp_path / name).write_bytes(content)
        assert main(["rebuild", str(tmp_path / name), "--into", str(tmp_path / "new")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"klsweep: error: {tmp_path / name}: ")
        assert not (tmp_path / "new").exists()


def manifest_of(name: str, content: bytes) -> bytes:
    import hashlib

    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    facts = {"format": 1, "anonymous": False, "sweeps": [], "choice": {}, "versions": {}, "notes": [], "outputs": {}}
    return json.dumps({**facts, "files": {name: entry}}).encode()


@pytest.mark.parametrize("name", ["../out", "/tmp/klsweep-out", "records/../../out", "a\\..\\out", "records//out"])
@pytest.mark.parametrize("form", ["tar.gz", "zip"])
def test_nothing_leaves_the_folder_that_it_is_unpacked_in(tmp_path, capsys, name, form):
    bundle, content = tmp_path / f"evil.{form}", b"owned"
    members = {MANIFEST: manifest_of(name, content), name: content}
    if form == "zip":
        with zipfile.ZipFile(bundle, "w") as archive:
            for member, data in members.items():
                archive.writestr(zipfile.ZipInfo(member), data)
    else:
        with tarfile.open(bundle, "w:gz") as tar:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert main(["rebuild", str(bundle), "--into", str(tmp_path / "new")]) == 2
    assert "is no name of a file within a bundle" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [bundle.name]
    assert not Path("/tmp/klsweep-out").exists()


@pytest.mark.parametrize("kind", ["link", "hard link", "zip link", "device"])
def test_only_plain_files_are_unpacked(tmp_path, capsys, kind):
    bundle = tmp_path / ("evil.zip" if kind == "zip link" else "evil.tar.gz")
    manifest = manifest_of("env.json", b"/etc/passwd")
    if kind == "zip link":
        with zipfile.ZipFile(bundle, "w") as archive:
            archive.writestr(MANIFEST, manifest)
            info = zipfile.ZipInfo("env.json")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
    else:
        with tarfile.open(bundle, "w:gz") as tar:
            info = tarfile.TarInfo(MANIFEST)
            info.size = len(manifest)
            tar.addfile(info, io.BytesIO(manifest))
            info = tarfile.TarInfo("env.json")
            info.type = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}[kind]
            info.linkname = "/etc/passwd"
            tar.addfile(info)
    assert main(["rebuild", str(bundle), "--into", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.endswith("env.json is no plain file; nothing was unpacked\n")
    assert os.listdir(tmp_path) == [bundle.name]


def test_an_anonymous_bundle_names_nobody(made):
    for name, content in files(made / "anonymous").items():
        text = name.lower().encode() + content.lower()
        assert [
            secret for secret in SECRETS if secret.encode() in text or json.dumps(secret)[1:-1].encode() in text
        ] == [], name
        assert "stderr" not in name
    run = made / "anonymous/records/study/runs/c-1"
    claim, status = read_json(run / "attempts/1/claim.json"), read_json(run / "status.json")
    assert (claim["owner"]["host"], claim["node"], claim["job"]["id"]) == ("host-1", "host-1", "job-1")
    assert status["cause"] == "vanished: no heartbeat from host-1 for 300 s, job job-1"
    assert status["traceback"] == "Traceback: /path-1/lab.py\n"
    assert (made / "anonymous/records/study/code/0123456789ab/user-1/lab.py").exists()
    launches = (made / "anonymous/records/study/sweep.yaml").read_text()
    assert "launcher.account=account-1" in launches
    assert "sweep_dir=/path-2/study" in launches
    assert LOG not in (run / "status.json").read_text()


def test_tables_and_figures_are_the_same_without_names(made, plain):
    with_names, without = files(plain / "outputs"), files(made / "anonymous" / "outputs")
    assert with_names.keys() == without.keys()
    assert [name for name in with_names if with_names[name] != without[name]] == ["report.html"]
    for name in ("runs/a-0/metrics.jsonl", "plan.jsonl", "runs/a-0/eval/add.jsonl"):
        assert (made / "anonymous/records/study" / name).read_bytes() == (plain / "records/study" / name).read_bytes()


def test_a_name_that_would_be_left_is_an_error(made, tmp_path, capsys, monkeypatch):
    """Here because a file is copied as it is."""
    hidden = Names.hidden_in
    for file, found in {
        "runs/b-1/eval/sort.jsonl": f"'{HOME}'",
        "runs/a-0/env.json": "git.commit = 'd0d0cafe'",
    }.items():
        name = f"records/study/{file}"
        monkeypatch.setattr(Names, "hidden_in", lambda self, n, c, file=name: c if n == file else hidden(self, n, c))
        assert main(["bundle", str(made / "study"), str(tmp_path / "b.zip"), "--anonymous"]) == 2
        error = f"klsweep: error: --anonymous: {name} would still say {found}; nothing was written\n"
        assert capsys.readouterr().err == error
        assert os.listdir(tmp_path) == []


def test_a_name_that_is_a_word_of_records_is_replaced_where_it_is_a_name():
    names = Names()
    names.add("user", "max")
    names.add("host", "Ätna.lab")
    assert names.ordinary == {"max"}
    assert names.hidden("max_kl of ÄTNA, atna and ätna.lab's max") == "max_kl of host-1, atna and host-1's max"
    assert (
        names.hidden('"\\u00c4tna" in JSON, %C3%84tna in a link, Ätnas') == '"host-1" in JSON, host-1 in a link, Ätnas'
    )
    names.gather("records/s/runs/r/config.yaml", b"a: /home/max/x\nb: see /data/max/y/z.json, eval/max\n")
    hidden = names.hidden_in("records/s/runs/r/config.yaml", b"user: max\na: /home/max/x\nb: eval/max /data/max/y/q\n")
    assert hidden == b"user: user-1\na: /path-1/x\nb: eval/max /path-2/q\n"


def test_states_are_frozen(tmp_path):
    """A run whose process has vanished has failed, one at work is running, here and wherever the bundle goes."""
    sweep = SweepFolder(tmp_path / "s")
    for seed in range(3):
        write_run(sweep, plan_row("a", seed), "done" if seed == 0 else "running", 0.5)
    gone = {**Owner.me()._asdict(), "started": "0"}
    write_json(sweep.run("a-1").attempt(1) / "claim.json", {**sweep.run("a-1").attempts.claim(1), "owner": gone})
    append_rows(sweep.run("a-2").metrics, [{"update": 10}])
    notes = pack({"s": sweep}, tmp_path / "out", None, lambda done, of: None)
    assert notes == ["1 runs were at work: they are as they were then"]
    copy = SweepFolder(tmp_path / "out/records/s")
    assert [copy.run(f"a-{seed}").recorded()["state"] for seed in range(3)] == ["done", "failed", "running"]
    assert "owner" not in copy.run("a-2").attempts.claim(1)
    assert sweep.run("a-1").attempts.end_of(1) is None  # the sweep itself is only read


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["none", "b.zip"], "none: no sweep there"),
        (["study", "b.rar"], "b.rar: unknown suffix '.rar' (choose from .tar.gz, .zip; a folder has none)"),
        (["study", "there.zip"], "there.zip: is there already (--force replaces a bundle)"),
        (["study", "folder", "--force"], "folder: is there already, and no bundle that could be replaced"),
        (["study", "none/b.zip"], "none/b.zip: none is no folder that can be written to"),
        (["study", "b.zip", "--strip", "zoe"], "--strip zoe: goes with --anonymous"),
        (["study", "b.zip", "--anonymous", "--strip", "kl"], "--strip kl: is a word of klsweep's own"),
        (["study", "b.zip", "--baseline", "placement=nowhere"], "placement=nowhere: "),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(made, in_tmp, capsys, words, error):
    shutil.copytree(made / "study", "study")
    Path("there.zip").write_text("mine")
    Path("folder").mkdir()
    before = files(in_tmp)
    assert main(["bundle", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"klsweep: error: {error}")
    assert files(in_tmp) == before


def test_rebuild_refuses_what_is_not_there_and_what_is(made, in_tmp, capsys):
    assert main(["rebuild", "none.zip"]) == 2
    assert "none.zip: no bundle there" in capsys.readouterr().err
    assert main(["rebuild", str(made / "plain.tar.gz"), "--into", "."]) == 2
    assert "--into=.: expected a new folder" in capsys.readouterr().err
    assert main(["rebuild", str(made / "study")]) == 2
    assert "no bundle (one begins with MANIFEST.json" in capsys.readouterr().err


def test_an_archive_is_nobodys_and_of_no_time(made):
    with tarfile.open(made / "plain.tar.gz") as tar:
        members = tar.getmembers()
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime, m.mode) for m in members} == {(0, 0, "", "", 0, 0o644)}
    assert [m.name for m in members] == sorted(m.name for m in members)
