"""Runs and cells in words."""

from klsweep.record import Row


def describe(row: Row) -> str:
    """A cell in a few words, e.g. `k1 reward β=0.1 off_policy`."""
    axes = row["axes"]
    words = [axes["estimator"], axes["placement"] if axes["estimator"] else "no KL"]
    if row["kl_coef"] is not None:
        words.append(f"β={row['kl_coef']:g}")
    if axes["clip"] not in (None, "none"):
        words.append(f"clip {axes['clip']}")
        words.extend(f"τ={v:g}" for k, v in row.get("fields", {}).items() if k == "clip.tau")
    words.append(axes["sampling"])
    return " ".join(word for word in words if word)
