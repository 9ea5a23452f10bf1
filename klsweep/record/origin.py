"""Where a run was made, and what is known of one that was made elsewhere and imported."""

from collections.abc import Iterable
from pathlib import Path

from klsweep.errors import BadInput
from klsweep.record.files import Row

OWN, EXTERNAL = "klsweep", "external"
MEASURED = "klsweep"  # a definition of KL: the one that klsweep measures


def origin(row: Row) -> str:
    """Where the run of a plan's row was made: OWN or EXTERNAL."""
    return row.get("origin", OWN)


def is_external(row: Row) -> bool:
    """True for a run that was made elsewhere. It has the axes that were declared, and no others."""
    return origin(row) == EXTERNAL


def is_kl(figure: str) -> bool:
    """True for the name of a figure that is a KL: of training (`kl/…`) or of an evaluation (`…/kl`)."""
    return figure.startswith("kl/") or figure.rpartition("/")[2] == "kl"


def other_kl(row: Row) -> str | None:
    """What the KL of an external run is, None if it is klsweep's."""
    definition = row.get("kl_definition")
    return None if definition in (None, MEASURED) else definition


def import_file(run: Path) -> Path:
    """In an external run's folder: the files that it was read from with their hashes, the mapping, and when."""
    return run / "import.json"


def check_own(rows: Iterable[Row]) -> None:
    """BadInput if one of these rows of a plan is of an external run: klsweep has nothing of it to go on with."""
    if external := [row["run_id"] for row in rows if is_external(row)]:
        raise BadInput(
            f"{external[0]}: is external, made elsewhere and imported: it has figures and items, but no configuration, "
            "weights or logs that klsweep could go on from"
        )
