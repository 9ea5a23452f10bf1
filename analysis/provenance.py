"""What must be alike for results to be comparable: evaluation, engine, prompts, code, plugins, origin."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, get_args

from klsweep.analysis.load import RunResult
from klsweep.errors import BadInput
from klsweep.record.origin import EXTERNAL, is_external

Kind = Literal["evaluation", "engine", "science", "plugins", "prompts", "origin"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NAMES: Mapping[Kind, str] = {
    "evaluation": "evaluation settings",
    "engine": "engines",
    "science": "science-code hashes",
    "plugins": "plugin-code hashes",
    "prompts": "prompt sets",
    "origin": "origins",
}

Provenance = dict[Kind, str]


def checked(mix: Sequence[str]) -> frozenset[Kind]:
    """The kinds of difference that results may have and still be taken together; `all` are all. BadInput for others."""
    if unknown := [name for name in mix if name not in (*KINDS, "all")]:
        raise BadInput(f"mix={unknown[0]}: choose from {', '.join(KINDS)}, all")
    return frozenset(KINDS if "all" in mix else [kind for kind in KINDS if kind in mix])


def provenances(runs: Sequence[RunResult]) -> list[Provenance]:
    """Of each run, what its result was made with. Of an unfinished one, which has no result, nothing; without an
    engine where it did not note one, without prompts where it left no items to tell them from."""
    variants = _prompt_variants(runs)
    return [_of(run, variants) if run.finished else {} for run in runs]


def _of(run: RunResult, variants: Mapping[str, Sequence[str]]) -> Provenance:
    asked = [f"{suite}:{run.prompts[suite]}" for suite in variants if suite in run.prompts]
    found: Provenance = {
        "evaluation": str(run.status.get("eval_id")),
        "engine": str(run.status.get("engine")),
        "science": EXTERNAL if is_external(run.plan) else str(run.status.get("science_hash")),
        "plugins": str(run.status.get("plugin_hash")),
        "prompts": " ".join(asked),
        "origin": run.origin,
    }
    unknown = {"engine": "engine" not in run.status, "prompts": len(asked) < len(variants)}
    return {kind: value for kind, value in found.items() if not unknown.get(kind)}


def agree(found: Provenance, other: Provenance) -> bool:
    """True unless they differ in something that is known of both."""
    return all(other.get(kind, value) == value for kind, value in found.items())


def distinct(found: Iterable[Provenance]) -> list[Provenance]:
    """The different ones, in their order; without those that know less than another with which they agree."""
    known = list({repr(one): one for one in found}.values())
    return [one for one in known if not any(len(other) > len(one) and agree(one, other) for other in known)]


def _prompt_variants(runs: Sequence[RunResult]) -> dict[str, list[str]]:
    """The suites in which different prompts were asked, with the digests. A run without items is no evidence."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for suite, digest in run.prompts.items():
            found.setdefault(suite, {})[digest] = None
    return {suite: list(digests) for suite, digests in sorted(found.items()) if len(digests) > 1}


def differing(found: Collection[Provenance]) -> list[Kind]:
    """The kinds in which results differ. Those of different origins differ by that, whatever else is known of them."""

    def values(kind: Kind, where: str | None) -> set[str]:
        return {p[kind] for p in found if kind in p and (kind == "origin" or p.get("origin") == where)}

    origins = {p.get("origin") for p in found}
    return [kind for kind in KINDS if any(len(values(kind, where)) > 1 for where in origins)]


def warnings(found: Sequence[Provenance], mixed: Collection[Kind]) -> list[str]:
    """A line for each kind in which finished runs differ."""
    lines = []
    told: list[Provenance] = [p.copy() for p in found]
    for own in told if "origin" in mixed else ():
        own.pop("origin", None)  # which does not keep apart then what differs besides
    apart: set[Kind] = {*differing(found), *differing(told)}
    for kind in filter(apart.__contains__, KINDS):
        values = sorted({p[kind] for p in found if kind in p})
        what = f"finished runs have {len(values)} different {NAMES[kind]} ({', '.join(values)})"
        lines.append(f"{what}: rows may not be comparable{'' if kind in mixed else f'; kept apart (--mix {kind})'}")
    return lines
