"""Audits as grids of text, for the terminal and for Markdown."""

from collections.abc import Sequence

from klsweep.audit.cases import Row

Grid = tuple[list[str], list[list[str]]]

FURTHER = (
    "clip_gradient",
    "clip_half",
    "kl_weight_cap",
    "correction_floor",
    "aggregation",
)


def bias_grid(rows: Sequence[Row]) -> Grid:
    """The bias table: a configuration in words, then the figures."""
    noisy = any("standard_error" in row for row in rows)
    header = ["estimator", "placement", "clip", "gradient", "weight", "sampling", "rel. error"]
    header += [*(["std. error"] if noisy else []), "cosine", "norm ratio", "variance", "SNR", "verdict"]
    presets = any(row["preset"] for row in rows)
    header = [*(["preset"] if presets else []), *header]
    grid = []
    for row in rows:
        name = [row["preset"] or "–"] if presets else []
        figures = [row["relative_error"], *([row["standard_error"]] if noisy else [])]
        figures += [row["cosine"], row["norm_ratio"], row["variance"], row["snr"]]
        grid.append([*name, *words(row), *(figure(value) for value in figures), row["verdict"]])
    return header, grid


def words(row: Row) -> list[str]:
    """Estimator, placement, clip, gradient, weight and sampling of a row."""
    estimator = row["estimator"] if row["loss_estimator"] is None else f"{row['estimator']} + {row['loss_estimator']}"
    how = [row["credit"], row["baseline"], row["level"], row["algorithm"]]
    if row["beta_reward"] is not None:
        how.append(f"β {row['beta_reward']:g}:{row['beta_loss']:g}")
    weight = row["kl_weight"] if row["kl_weight_grad"] is None else f"{row['kl_weight']} {row['kl_weight_grad']}"
    if row["correction"] is not None:
        bounds = "not capped" if row["correction_cap"] is None else f"{row['correction']} at {row['correction_cap']:g}"
        level = f"{row['correction_level']} " if row["level"] is not None else ""
        weight = f"{weight} ({level}{bounds})"
    if row["kl_weight_over"] not in (None, "sampler" if row["sampling"] == "off_policy" else "old"):
        weight += f" over {row['kl_weight_over']}"
    further = [f"{name}={row[name]}" for name in FURTHER if row[name] is not None]
    if row["clamp_stage"] == "before_weight":
        further.append("clamp_stage=before_weight")
    placement = " ".join([row["placement"], *(part for part in how if part)])
    return [
        estimator,
        placement + (f" ({', '.join(further)})" if further else ""),
        _clip(row),
        row["gradient"] or "–",
        weight,
        row["sampling"],
    ]


def named(row: Row) -> str:
    """The configuration in one phrase, without what is plain in it."""
    estimator, placement, clip, gradient, weight, sampling = words(row)
    parts = [estimator, placement, *(["clip", clip] if clip != "none" else [])]
    parts += ["gradient", gradient] if gradient not in ("–", "same") else []
    parts += ["weight", weight] if weight != "none" else []
    return " ".join([*parts, *([sampling] if sampling == "off_policy" else [])])


def _clip(row: Row) -> str:
    if row["clip"] == "none":
        return "none"
    parts = [row["clip_level"], row["clip_mode"]]
    if row["tau"] is not None:
        parts.append(f"τ={row['tau']:g}")
    elif row["clip_level"] is not None:
        parts.append(f"[{_bound(row['clip_low'], '−∞')}, {_bound(row['clip_high'], '∞')}]")
    if row["clip_output"] is not None:
        parts.append(f"output {row['clip_output']:g}")
    return " ".join(part for part in parts if part)


def _bound(value: float | None, absent: str) -> str:
    return absent if value is None else f"{value:g}"


def figure(value: float | None) -> str:
    """Six digits; nothing for an undefined one, and 0 for what is zero to rounding."""
    if value is None:
        return "–"
    if abs(value) < 1e-9:
        return "0"
    return f"{value:.6f}" if abs(value) < 1e4 else f"{value:.4g}"


def whole_grid(rows: Sequence[Row]) -> Grid:
    """What each algorithm makes of reward and KL."""
    header = ["algorithm", "group", "KL term", "β", "reward scale", "KL scale", "β in effect"]
    header += ["neither", "cosine", "P(equal rewards)"]
    keys = ("beta", "reward_scale", "kl_scale", "effective_beta", "residual", "cosine", "equal_groups")
    grid = []
    for row in rows:
        described = named({**row, "algorithm": None})
        grid.append([row["algorithm"], str(row["group_size"]), described, *(figure(row[key]) for key in keys)])
    return header, grid


def study_grid(rows: Sequence[Row]) -> Grid:
    """Bias and variance of each configuration at the shortest, middle and longest length."""
    lengths = sorted({row["length"] for row in rows})
    shown = sorted({lengths[0], lengths[len(lengths) // 2], lengths[-1]})
    found = {(row["configuration"], row["length"]): row for row in rows}
    distances = [row["distance"] for row in rows if row["distance"] is not None]
    header = ["configuration", *(f"{what} T={length}" for what in ("bias", "variance") for length in shown)]
    header.append("largest distance")
    grid = []
    for name in dict.fromkeys(row["configuration"] for row in rows):
        own = [found[name, length] for length in shown]
        biases = [f"{row['bias']:.4f} (noise {row['bias_noise']:.4f})" for row in own]
        apart = [row["distance"] for row in rows if row["configuration"] == name and row["distance"] is not None]
        largest = f"{max(apart):.2f} s.e." if distances else "–"
        grid.append([name, *biases, *(f"{row['variance']:.4g}" for row in own), largest])
    return header, grid


def real_grid(rows: Sequence[Row]) -> Grid:
    """A real policy's table: estimates with their 95 % intervals."""
    names = {"relative_error": "rel. error", "cosine": "cosine", "norm_ratio": "norm ratio", "projection": "projection"}
    header = ["estimator", "placement", "clip", "gradient", "weight", *names.values(), "verdict"]
    return header, [[*words(row)[:-1], *(_interval(row, name) for name in names), row["verdict"]] for row in rows]


def _interval(row: Row, name: str) -> str:
    if row[name] is None:
        return "–"
    if row[f"{name}_low"] is None:
        return f"{row[name]:.3f} [–]"
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
