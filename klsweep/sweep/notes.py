"""What a plan says beforehand: settings without effect, cells that are equal in expectation, runs made otherwise."""

from klsweep.audit.expectation import Claim, claim
from klsweep.cells import describe
from klsweep.config.grid import Expansion
from klsweep.config.identity import covers, inert_keys
from klsweep.config.plugins import plugin_hash
from klsweep.errors import BadInput
from klsweep.provenance import science_hash
from klsweep.record.files import Row
from klsweep.record.folder import FINISHED
from klsweep.sweep.planned import PlannedRun

KL_TERM = ("estimator", "placement", "clip", "kl.weight", "kl.weight_over", "kl.weight_grad", "kl.weight_cap", "seed")


def evaluation_notes(runs: list[PlannedRun], statuses: dict[str, Row]) -> list[str]:
    """How many finished runs were evaluated otherwise. BadInput if a run that has begun would be."""
    other = [r for r in runs if statuses[r.run_id].get("eval_id") not in (None, r.row["eval_id"])]
    begun = [run for run in other if statuses[run.run_id]["state"] not in FINISHED]
    if begun:
        raise BadInput(
            f"eval: run {begun[0].run_id} has begun with other evaluation settings "
            f"({statuses[begun[0].run_id]['eval_id']}, not {begun[0].row['eval_id']}): finish it with those, "
            "or give another sweep_dir"
        )
    notes = []
    if other:
        notes.append(
            f"{len(other)} finished runs were evaluated with other settings and stay as they are "
            "(another sweep_dir trains and evaluates anew)"
        )
    notes += _code_notes(runs, statuses)
    alone = sum("in" not in run.row["suites"].values() for run in runs)
    if alone:
        notes.append(f"{alone} runs have no suite with their task's evaluation prompts: nothing in distribution")
    return notes


def _code_notes(runs: list[PlannedRun], statuses: dict[str, Row]) -> list[str]:
    """How many finished runs were made by other code, of klsweep or of plugins."""
    finished = [run for run in runs if statuses[run.run_id]["state"] in FINISHED]
    code = [statuses[run.run_id].get("science_hash") for run in finished]
    plugins = [(statuses[run.run_id].get("plugin_hash"), plugin_hash(run.spec.root.plugins)) for run in finished]
    kinds = {
        "other code": [found for found in code if found != science_hash()],
        "other plugin code": [found for found, now in plugins if found != now],
    }
    return [
        f"{len(older)} finished runs were made by {what} than this ({', '.join(sorted(set(map(str, older))))})"
        for what, older in kinds.items()
        if older
    ]


def inert_notes(expansion: Expansion, runs: list[PlannedRun]) -> list[str]:
    """Keys the user set that no run's result depends on."""
    inert = inert_keys(expansion.given, [(run.spec, run.canonical) for run in runs])
    return [f"{key} has no effect on any of these runs" for key in inert]


def expectation_notes(runs: list[PlannedRun]) -> list[str]:
    """Cells whose KL term has the same gradient in expectation, and those where it is zero."""
    names = describe([run.row for run in runs])
    kinds: list[tuple[Claim, str, dict[str, str]]] = []
    for run in {run.row["cell_id"]: run for run in runs}.values():
        found = _claim(run)
        if found is None:
            continue
        rest = repr([(k, v) for k, v in run.canonical.items() if not covers(KL_TERM, k)])
        same = [cells for other, others, cells in kinds if others == rest and other.equals(found)]
        if not same:
            kinds.append((found, rest, same_cells := {}))
            same = [same_cells]
        same[0][run.row["cell_id"]] = names[run.row["cell_id"]]
    notes = []
    for found, _, cells in kinds:
        what = (
            "the gradient of the sequence KL" if found.verdict == "unbiased" else found.verdict.removeprefix("biased: ")
        )
        if found.verdict.startswith("zero"):
            notes.append(f"KL term with zero expected gradient (β adds only noise): {'; '.join(cells.values())}")
        elif len(cells) > 1:
            notes.append(f"equal in expectation ({what}): {'; '.join(cells.values())}")
    return notes


def _claim(run: PlannedRun) -> Claim | None:
    """What the audit says of the run's KL term, where it carries over to the run."""
    stale = run.spec.sampling.is_stale or run.spec.train.minibatches > 1
    truncated = run.spec.rollout.top_p < 1  # the sampler is then not π, and E_μ[∇log π] is not 0
    return None if stale or truncated else claim(run.objective)
