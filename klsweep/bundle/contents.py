"""Which files of a sweep go into a bundle, and their copies: as the records are now, and the same wherever they lie."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from klsweep.bundle.manifest import RECORDS
from klsweep.bundle.names import Names, has_fields, is_code, known_here
from klsweep.config.plugins import code_files, is_installed, walk
from klsweep.errors import BadInput
from klsweep.provenance import PACKAGE, SOURCE_RECORD, git_state
from klsweep.record.files import write_json
from klsweep.record.folder import RunFolder, SweepFolder

CODE = "code"
OF_SWEEP = ("*.jsonl", "*.yaml")
OF_RUN = ("*.jsonl", "*.yaml", "*.json", "eval/*.jsonl", "rollouts/*.jsonl", "attempts/*/*.json")
LOGS = ("attempts/*/stdout", "attempts/*/stderr")
MOST_TRIES = 10  # of copying a run whose attempt ends or begins meanwhile

NO_PLUGINS = b"\nplugins: []\n"

OnStep = Callable[[int, int], None]


class File(NamedTuple):
    """A file by its name in the bundle, and where it is now."""

    name: str
    path: Path


def of_sweep(name: str, sweep: SweepFolder) -> list[File]:
    """What of a sweep is not of a run: its plan, its launches, and the code that its jobs ran."""
    files = [path for pattern in OF_SWEEP for path in sweep.path.glob(pattern)]
    copies = [
        path for copy in sweep.code.glob("[!.]*") if copy.is_dir() and copy.name != "claims" for path in walk(copy)
    ]
    return _named(name, sweep.path, [*files, *copies])


def of_run(name: str, run: RunFolder, logs: bool) -> list[File]:
    """What a run has recorded: everything but weights and optimisers."""
    patterns = (*OF_RUN, *LOGS) if logs else OF_RUN
    files = [path for pattern in patterns for path in run.path.glob(pattern)]
    return _named(name, run.sweep.path, files)


def _named(name: str, root: Path, files: Iterable[Path]) -> list[File]:
    kept = (file for file in files if file.is_file() and not file.name.startswith("."))
    return sorted(File(f"{RECORDS}/{name}/{file.relative_to(root).as_posix()}", file) for file in kept)


def own_code(plugins: Sequence[str]) -> tuple[list[File], list[str]]:
    """klsweep as it is here, and plugins outside site-packages; and a note on each plugin that cannot be imported."""
    files = [File(f"{CODE}/klsweep/{file.relative_to(PACKAGE).as_posix()}", file) for file in walk(PACKAGE)]
    notes = list[str]()
    for plugin in plugins:
        try:
            found = code_files(plugin)
        except BadInput as error:
            notes.append(f"the code of plugin {plugin} is not in it: {error}")
            continue
        files += [File(f"{CODE}/{name}", file) for name, file in found.items() if not is_installed(file)]
    return files, notes


def pack(sweeps: Mapping[str, SweepFolder], root: Path, names: Names | None, on_step: OnStep) -> list[str]:
    """Copy what these sweeps have recorded, and the code here, below `root`; notes on what a reader must know.

    `names` are left out, and so is what processes printed.
    """
    bundle, runs = _Copy(root, names), _runs(sweeps)
    for name, sweep in sweeps.items():
        bundle.add(of_sweep(name, sweep))
    at_work = 0
    for done, (name, run) in enumerate(runs, 1):
        at_work += bundle.add_run(name, run)
        on_step(done, len(runs))
    code, notes = own_code(plugins_of(run for _, run in runs))
    bundle.add(code)
    bundle.write(f"{CODE}/{SOURCE_RECORD}", (json.dumps(git_state(), indent=1) + "\n").encode())
    return [*notes, *([f"{at_work} runs were at work: they are as they were then"] if at_work else [])]


def _runs(sweeps: Mapping[str, SweepFolder]) -> list[tuple[str, RunFolder]]:
    """The planned runs, each with the name of its sweep."""
    return [(name, sweep.run(row["run_id"])) for name, sweep in sweeps.items() for row in sweep.plan()]


def names_in(sweeps: Mapping[str, SweepFolder], further: Iterable[str], on_step: OnStep) -> Names:
    """What these records and whoever bundles them must not tell, and `further` words. BadInput for one that is a word
    of klsweep's own.
    """
    names, runs = Names(), _runs(sweeps)
    parts = [of_sweep(name, sweep) for name, sweep in sweeps.items()]
    for done, files in enumerate((*parts, *(of_run(name, run, logs=False) for name, run in runs)), 1):
        for file in files:
            if has_fields(file.name) or is_code(file.name):
                names.gather(file.name, file.path.read_bytes())
        on_step(done, len(parts) + len(runs))
    for kind, name in known_here([sweep.path for sweep in sweeps.values()]):
        names.add(kind, name)
    for word in further:
        if names.is_ordinary(word):
            raise BadInput(f"--strip {word}: is a word of klsweep's own, records without it would be others")
        names.add("name", word)
    return names


@dataclass(frozen=True)
class _Copy:
    """Files below `root`, without `names` if those are given."""

    root: Path
    names: Names | None

    def add(self, files: Iterable[File]) -> None:
        for file in files:
            self.write(file.name, file.path.read_bytes())

    def write(self, name: str, content: bytes) -> None:
        if self.names is not None:
            name, content = self.names.hidden(name), self.names.hidden_in(name, content)
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def add_run(self, name: str, run: RunFolder) -> bool:
        """Copy a run, again if an attempt at it began or ended meanwhile; True if one goes on."""
        place = f"{RECORDS}/{name}/runs/{run.run_id}"
        copy = RunFolder(self.root / (self.names.hidden(place) if self.names is not None else place))
        for _ in range(MOST_TRIES):
            before = run.recorded()
            self.add(of_run(name, run, logs=self.names is None))
            if run.recorded() == before:
                return _settled(run, copy)
        raise BadInput(f"{run.path}: attempts at it begin and end all the time; bundle it when it is at rest")


def _settled(run: RunFolder, copy: RunFolder) -> bool:
    """Write down in a copy what else only the host can tell that ran it; True if an attempt goes on.

    An attempt whose process has vanished has ended so. One that goes on is nobody's in the copy: it is running wherever
    that is looked at.
    """
    status = run.status()
    number = status["attempt"]
    if not number or copy.attempts.end_of(number) is not None:
        return False
    claim = copy.attempts.claim(number)
    if status["state"] == "failed":
        seen = [file for file in (run.attempts.heartbeat(number), run.attempt(number) / "claim.json") if file.exists()]
        ended = max(file.stat().st_mtime for file in seen)
        copy.attempts.end(number, {"state": "failed", "cause": status["cause"], "traceback": None, "ended": ended})
    else:
        write_json(copy.attempt(number) / "claim.json", {key: claim[key] for key in claim if key != "owner"})
    copy.write_status(copy.recorded())
    return status["state"] == "running"


def plugins_of(runs: Iterable[RunFolder]) -> list[str]:
    """The plugins that runs were made with."""
    found = set[str]()
    for run in runs:
        if run.config.exists() and NO_PLUGINS not in (text := run.config.read_bytes()):
            found |= set((yaml.load(text, yaml.CSafeLoader) or {}).get("plugins") or ())
    return sorted(found)
