"""The findings of the two papers, as data: what each says, what is measured for it, and where it must lie to hold.

"A Comedy of Estimators" (arXiv 2512.21852) and "Generalisation of RLHF under Reward Shift and Clipped KL
Regularisation" (arXiv 2602.21765). Cells are those of the `_mini` experiments, whose runs a laptop can repeat; what no
such run can tell is a claim out of reach, with the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass

from klsweep.analysis.compare import Comparison
from klsweep.analysis.decision import ABOVE_ZERO, BELOW_ZERO, Region
from klsweep.analysis.load import RunResult
from klsweep.analysis.measures import (
    Labels,
    Mean,
    Measure,
    OfRun,
    Share,
    beyond_base,
    has_collapsed,
    margin,
    metric,
    rise,
)
from klsweep.theory.bound import paper_alpha

MOST, FEW = Region(low=0.5), Region(high=0.5)  # of the runs


@dataclass(frozen=True)
class Claim:
    """A finding, and the figure that is to lie in `region` if it holds; `measured` says in words what is measured."""

    finding: str
    measured: str
    region: Region
    measure: Measure


@dataclass(frozen=True)
class OutOfReach:
    """A finding that runs of a small model cannot tell anything about."""

    finding: str
    reason: str


def _on(estimator: str, placement: str, beta: float) -> Labels:
    """A cell of `paper_on_policy_mini`."""
    return {"estimator": estimator, "placement": placement, "kl.coef": beta, "algorithm.group_size": 5}


def _off(placement: str, estimator: str | None = None) -> Labels:
    """A cell of `paper_off_policy_mini`."""
    cell = {"task": "add", "placement": placement, "sampling": "off_policy", "algorithm": "dr_grpo"}
    return cell if estimator is None else {"estimator": estimator, **cell}


BETAS = (0.3, 1.0)
NO_KL: Labels = {"placement": "none", "algorithm.group_size": 5}
K1_REWARD, K1_LOSS, K3_REWARD, K3_LOSS = (
    [_on(estimator, placement, beta) for beta in BETAS]
    for estimator, placement in (("k1", "reward"), ("k1", "loss"), ("k3", "reward"), ("k3", "loss"))
)
COLLAPSED = has_collapsed("reward/correct")


def _collapses(finding: str, words: str, cell: Labels, region: Region) -> Claim:
    return Claim(finding, f"{words}: share of runs that collapse", region, Share(COLLAPSED, cell))


def _accuracy(finding: str, role: str, words: str, cell: Labels, against: Labels) -> Claim:
    where = {"in": "in", "out": "out of"}[role]
    return Claim(finding, f"{words}: accuracy {where} distribution", BELOW_ZERO, Mean(metric(role), [cell], [against]))


UNSTABLE = "k1 in the loss is unstable"
FALLS = "k3 in the reward collapses"
BELOW = "k3 in the loss ends below k1 in the reward"

ON_POLICY: list[Claim | OutOfReach] = [
    _collapses(UNSTABLE, "β = 0.3", K1_LOSS[0], MOST),
    _collapses(UNSTABLE, "β = 1", K1_LOSS[1], MOST),
    _accuracy(UNSTABLE, "in", "β = 1 less no KL", K1_LOSS[1], NO_KL),
    _accuracy(UNSTABLE, "out", "β = 1 less no KL", K1_LOSS[1], NO_KL),
    OutOfReach(
        "… from β = 0.3 on with Qwen2.5-7B, from β = 0.05 on with Llama-3.1-8B",
        "where it begins is a property of those models; this one has another scale of β",
    ),
    Claim(
        "β on k1 in the loss regularises nothing",
        "β = 0.3 and 1, less no KL: KL in % of that without",
        Region(-10, 10),
        Mean(metric("kl"), K1_LOSS, [NO_KL], percent=True),
    ),
    _collapses(FALLS, "β = 0.3", K3_REWARD[0], MOST),
    _collapses(FALLS, "β = 1", K3_REWARD[1], MOST),
    _accuracy(FALLS, "in", "β = 1 less no KL", K3_REWARD[1], NO_KL),
    Claim(
        "k3 in the reward does not hold the policy",
        "β = 0.3 and 1, less k1 in the reward: KL, nats",
        ABOVE_ZERO,
        Mean(metric("kl"), K3_REWARD, K1_REWARD),
    ),
    _collapses("k3 in the loss is stable", "β = 0.3", K3_LOSS[0], FEW),
    _collapses("k3 in the loss is stable", "β = 1", K3_LOSS[1], FEW),
    Claim(
        BELOW,
        "same β (0.3 and 1): accuracy in distribution",
        BELOW_ZERO,
        Mean(metric("in"), K3_LOSS, K1_REWARD),
    ),
    Claim(
        BELOW,
        "same β (0.3 and 1): accuracy out of distribution",
        BELOW_ZERO,
        Mean(metric("out"), K3_LOSS, K1_REWARD),
    ),
    Claim(
        "… by 3 to 18 %",
        "same β (0.3 and 1): accuracy in distribution, in %",
        Region(-18, -3),
        Mean(metric("in"), K3_LOSS, K1_REWARD, percent=True),
    ),
    Claim(
        "… by 3 to 18 %",
        "same β (0.3 and 1): accuracy out of distribution, in %",
        Region(-18, -3),
        Mean(metric("out"), K3_LOSS, K1_REWARD, percent=True),
    ),
    OutOfReach(
        "… on MMLU college physics 0.429 against 0.508 (Qwen2.5-7B)",
        "the shipped model knows no physics; `experiment=paper_on_policy` asks Qwen2.5-7B",
    ),
    Claim(
        "k1 in the reward has the lower entropy",
        "less k3 in the loss, same β (0.3 and 1): entropy of a response, nats",
        BELOW_ZERO,
        Mean(metric("entropy"), K1_REWARD, K3_LOSS),
    ),
    Claim(
        "k1 in the reward has the higher forward KL",
        "less k3 in the loss, same β (0.3 and 1): KL(π_ref‖π) of the token distributions of a response, nats",
        ABOVE_ZERO,
        Mean(metric("kl/forward_sequence"), K1_REWARD, K3_LOSS),
    ),
]

OFF_POLICY: list[Claim | OutOfReach] = [
    _collapses("Off policy, no KL collapses", "β = 0", _off("none"), MOST),
    _collapses("Off policy, k1 in the loss collapses", "β = 0.4", _off("loss", "k1"), MOST),
    _collapses("Off policy, k1 in the reward holds", "β = 0.4", _off("reward", "k1"), FEW),
    _collapses("Off policy, k3 in the loss holds", "β = 0.4", _off("loss", "k3"), FEW),
    OutOfReach(
        "… at β = 0.005, of Qwen2.5-7B on MATH and Qwen3-4B on Countdown",
        "a β that small does nothing to this model; `experiment=paper_off_policy` asks it of those",
    ),
]


def _clipped_over_meant(comparison: Comparison) -> OfRun:
    """Share of log-ratios beyond τ over the 2α that a calibrated τ is to leave there."""
    clipped = metric("clip/fraction")(comparison)

    def value(run: RunResult) -> float | None:
        fields, share = run.plan["fields"], clipped(run)
        prompts = fields["clip.window"] * fields["train.prompts_per_update"]
        alpha = paper_alpha(prompts, fields["algorithm.group_size"], 1 - fields["clip.confidence"])
        return None if share is None else share / (2 * alpha)

    return value


SHIFTED: dict[str, str | float] = {"reward": "reward_model", "task": "sort"}  # cells of `reward_shift_mini`
FREE: Labels = {**SHIFTED, "placement": "none"}
HELD: Labels = {**SHIFTED, "estimator": "k1", "placement": "reward", "kl.coef": 0.05, "clip": "none"}
CLIPPED: Labels = {**HELD, "clip": "quantile"}
TRUTH: Callable[[Comparison], OfRun] = metric("in")

REWARD_SHIFT: list[Claim | OutOfReach] = [
    Claim(
        "Without KL a policy over-optimises its reward model: the proxy rises …",
        "no KL: r̂ of the last batches less that of the first",
        ABOVE_ZERO,
        Mean(rise("reward/mean"), [FREE]),
    ),
    Claim(
        "… and the truth falls",
        "no KL: true accuracy less the base's",
        BELOW_ZERO,
        Mean(beyond_base("in"), [FREE]),
    ),
    Claim(
        "KL regularisation keeps the truth",
        "k1 in the reward, β = 0.05, less no KL: true accuracy",
        ABOVE_ZERO,
        Mean(TRUTH, [HELD], [FREE]),
    ),
    Claim(
        "So does KL regularisation that is clipped at τ*",
        "the same with the calibrated clip, less no KL: true accuracy",
        ABOVE_ZERO,
        Mean(TRUTH, [CLIPPED], [FREE]),
    ),
    Claim(
        "C(θ) grows as a policy leaves the reward model's data",
        "no KL less β = 0.05: C(θ)",
        ABOVE_ZERO,
        Mean(metric("shift/coverage"), [FREE], [HELD]),
    ),
    Claim(
        "The reward-shift term bounds |E(r̂ − r*)|",
        "all three cells: C(θ)√L_train less the logged gap",
        ABOVE_ZERO,
        Mean(margin("bound/reward_shift", "reward/gap"), [FREE, HELD, CLIPPED]),
    ),
    Claim(
        "… and says more than that rewards lie in [0, 1]",
        "β = 0.05: C(θ)√L_train",
        Region(high=1),
        Mean(metric("bound/reward_shift"), [HELD]),
    ),
    Claim(
        "τ* leaves 2α of the log-ratios beyond it",
        "calibrated clip, batches after the calibration: share beyond τ over 2α",
        Region(0.8, 1.25),
        Mean(_clipped_over_meant, [CLIPPED]),
    ),
]
