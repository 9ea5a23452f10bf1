"""The bound's terms as a figure: against τ, against n, against K. matplotlib without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from klsweep.analysis.plots import save
from klsweep.theory.budget import Costs
from klsweep.theory.decomposition import (
    Decomposition,
    Point,
    Spending,
    against_prompts,
    against_rollouts,
    against_tau,
)
from klsweep.theory.inputs import Floats

TERMS = {"sampling": "C0", "clipping": "C1", "reward_shift": "C2", "total": "black"}


def plot_bound(found: Decomposition, log_ratios: Floats, costs: Costs, spent: Spending, file: Path) -> None:
    """Three panels: the terms at other thresholds, for other n (each at its own τ*), and for other K at equal cost.

    τ*, the n given and the K that is best are marked. `spent`: the best n and K for what the n and K given cost, or for
    the budget. Drawn from all the log-ratios, also if τ* is from half of them. Where lines are missing, KL would be
    switched off.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    setting = found.setting
    figure, panels = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    _tau_panel(panels[0], found, log_ratios)
    counts = _whole(max(2.0, setting.prompts / 32), setting.prompts * 32)
    _draw(panels[1], against_prompts(setting, log_ratios, counts))
    panels[1].axvline(setting.prompts, color="0.5", linestyle=":", label=f"n = {setting.prompts}")
    panels[1].set(xlabel="prompts n", title=f"each at its own τ*, K = {setting.rollouts}", xscale="log")
    budget = spent.prompts * costs.of_prompt(spent.rollouts)
    counts = sorted({*_whole(1, 8 * max(spent.rollouts, setting.rollouts)), spent.rollouts})
    _draw(panels[2], against_rollouts(setting, log_ratios, costs, budget, counts))
    panels[2].axvline(spent.rollouts, color="0.5", linestyle=":", label=f"K* = {spent.rollouts}")
    title = f"whole n at equal cost, prefill : decode = {costs.prefill:g} : {costs.decode:g}"
    panels[2].set(xlabel="rollouts per prompt K", title=title, xscale="log")
    for panel in panels:
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    panels[0].set_ylabel("units of reward")
    save(figure, file)
    pyplot.close(figure)


def _tau_panel(panel: Any, found: Decomposition, log_ratios: Floats) -> None:
    """One threshold, or both of an asymmetric clip, each with the other one at its best."""
    clip = found.clip
    if not found.setting.asymmetric:
        _draw(panel, against_tau(found.setting, log_ratios, "both", clip))
        panel.axvline(clip.high, color="0.5", linestyle=":", label=f"τ* = {clip.high:.4g}")
        panel.set(xlabel="threshold τ, nats")
    else:
        for side, style, value in (("low", "--", clip.low), ("high", "-", clip.high)):
            _draw(panel, against_tau(found.setting, log_ratios, side, clip), style, f", τ_{side}")
            panel.axvline(value, color="0.5", linestyle=style, linewidth=0.8, label=f"τ_{side}* = {value:.4g}")
        panel.set(xlabel="threshold on one side, nats, the other at its best")
    panel.set(title=f"β = {found.setting.beta:g}, α = {found.setting.alpha:.4f}")


def _draw(panel: Any, points: Sequence[Point], style: str = "-", suffix: str = "") -> None:
    places = [point.at for point in points]
    for term, colour in TERMS.items():
        values = [np.nan if point.bound is None else getattr(point.bound, term) for point in points]
        panel.plot(places, values, style, color=colour, label=term.replace("_", " ") + suffix)


def _whole(low: float, high: float) -> list[int]:
    """About 40 whole numbers, evenly spread in the logarithm."""
    return sorted({round(float(x)) for x in np.geomspace(low, high, 40)})
