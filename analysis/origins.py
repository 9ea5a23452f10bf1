"""How a comparison came about: what was launched, with which code and settings, and digests of the plans."""

import hashlib
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from klsweep.analysis.compare import Comparison
from klsweep.analysis.load import RunResult
from klsweep.record.files import Row, read_json
from klsweep.record.folder import SweepFolder
from klsweep.record.origin import import_file, is_external

SHOWN_PACKAGES = ("torch", "transformers", "numpy")


class Origin(NamedTuple):
    """What there is to know under a heading: `commands` to be typed, `facts` to be read."""

    name: str
    commands: list[str]
    facts: list[str]


def origins(comparison: Comparison, sweeps: Mapping[str, SweepFolder], command: Sequence[str]) -> list[Origin]:
    """`command` makes the page again, `sweeps` by their names in run keys; then launches, and what runs were made with.

    Hosts and users are not named.
    """
    runs = [run for cell in comparison.cells for run in cell.runs]
    found = [Origin("This page", [shlex.join(command)], [])]
    found += [_of_sweep(name, sweep) for name, sweep in sweeps.items()]
    facts = [
        *_counted("science-code hash", (run.status.get("science_hash") for run in runs)),
        *_counted("plugin-code hash", (run.status.get("plugin_hash") for run in runs)),
        *_counted("evaluation settings", (run.status.get("eval_id") for run in runs)),
        *_counted("model content", (run.plan["fields"].get("model.content") for run in runs)),
        *_counted("training data", (run.plan["fields"].get("task.data") for run in runs)),
        *_environments(runs, sweeps),
    ]
    return [*found, Origin("Runs", [], facts)]


def _of_sweep(name: str, sweep: SweepFolder) -> Origin:
    if not sweep.plan_file.exists():
        return Origin(f"Sweep {name}", [], ["nothing has been planned here"])
    facts = [f"plan.jsonl: sha256 {hashlib.sha256(sweep.plan_file.read_bytes()).hexdigest()}", *_imports(sweep)]
    try:
        launches: Any = yaml.load(sweep.launches.read_bytes(), yaml.CSafeLoader) if sweep.launches.exists() else []
        overrides = [[str(word) for word in launch["overrides"]] for launch in launches or []]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        return Origin(f"Sweep {name}", [], [*facts, f"sweep.yaml cannot be read: {str(error).splitlines()[0]}"])
    commands = [shlex.join(["klsweep", "sweep", *words]) for words in overrides]
    return Origin(f"Sweep {name}", list(dict.fromkeys(commands)), facts)


def _imports(sweep: SweepFolder) -> list[str]:
    """The mappings by which external runs came in, and how many files those were read from."""
    read = defaultdict[str, set[str]](set)
    for row in filter(is_external, sweep.plan()):
        try:
            record = read_json(import_file(sweep.run(row["run_id"]).path)) or {}
            by = f"{record['mapping']['file']} (sha256 {record['mapping']['sha256']})"
            read[by] |= {source["file"] for source in record["sources"]}
        except (OSError, ValueError, KeyError, TypeError):  # half-written
            read["a mapping that is not recorded"] |= set()
    return [f"external: imported by {by} from {len(files)} files (import.json of a run)" for by, files in read.items()]


def _environments(runs: Iterable[RunResult], sweeps: Mapping[str, SweepFolder]) -> list[str]:
    """Commits and versions, each with the number of runs."""
    found = list[Row]()
    for run in runs:
        try:
            found.append(read_json(sweeps[run.key.sweep].run(run.key.run_id).environment) or {})
        except (OSError, ValueError):  # half-written
            found.append({})
    commits = [None if not (git := one.get("git")) else git["commit"] + _changed(git) for one in found]
    versions = [
        ", ".join([f"Python {one['python']}", *(f"{n} {v}" for n in SHOWN_PACKAGES if (v := one["packages"].get(n)))])
        if "python" in one
        else None
        for one in found
    ]
    return [*_counted("git commit", commits), *_counted("versions", versions)]


def _changed(git: Row) -> str:
    """Says that the code was not as committed; env.json has the difference."""
    return " with uncommitted changes (see env.json of a run)" if git.get("diff") else ""


def _counted(name: str, values: Iterable[str | None]) -> list[str]:
    """A fact per value, with the number of runs if there are several."""
    counts = Counter(value for value in values if value is not None)
    if len(counts) == 1:
        return [f"{name}: {next(iter(counts))}"]
    return [f"{name}: {value} ({count} runs)" for value, count in counts.most_common()]
