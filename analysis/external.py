"""What a reader is told of results that were made elsewhere."""

from collections.abc import Iterable

from klsweep.analysis.load import RunResult
from klsweep.record.origin import is_external, is_kl, other_kl

OTHER_KL = "‡"  # behind a KL that is not what klsweep measures


def kl_definitions(figure: str, runs: Iterable[RunResult]) -> list[str]:
    """What the KL of these runs is where it is not klsweep's; nothing for a figure that is no KL."""
    if not is_kl(figure):
        return []
    return sorted({found for run in runs if (found := other_kl(run.plan)) is not None})


def external_notes(figures: Iterable[str], runs: Iterable[RunResult]) -> list[str]:
    """The lines below a table of these figures, if there are external runs."""
    there = list(runs)
    external = [run for run in there if is_external(run.plan)]
    if not external:
        return []
    lines = [
        f"{len(external)} of {len(there)} runs are external: made elsewhere and imported (klsweep import). What they "
        "were is as their mapping declares it, – where it does not."
    ]
    if any(map(is_kl, figures)):
        told = sorted({(run.plan["fields"]["study"], other) for run in external if (other := other_kl(run.plan))})
        lines += [f"{OTHER_KL} KL of {study}: {other}; not as klsweep measures it." for study, other in told]
    return lines
