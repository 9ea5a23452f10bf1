"""The TRL presets against TRL's own trainers: advantages, loss and the full gradient of one recorded batch."""

import json
import math
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from klsweep.model.parallel import ALONE
from klsweep.model.policy import states
from klsweep.objective.objective import Objective, build_objective
from klsweep.training.step import Learner
from tests.conftest import planned
from tests.parity.batch import GROUP, LENGTH, TEMPERATURE, Batch

pytestmark = pytest.mark.slow

BETA = 0.3
SETTINGS = {  # what each preset's `setting` says
    "trl_grpo": ("grpo", {"beta": BETA, "use_bias_correction_kl": True}),
    "trl_grpo_legacy": ("grpo", {"beta": BETA, "use_bias_correction_kl": False}),
    "trl_rloo": ("rloo", {"beta": BETA}),
}
CASES = [(preset, policy) for preset in SETTINGS for policy in ("old", "new")]


@pytest.fixture(scope="module")
def found(batch, in_parity):
    """What TRL computed, by case."""
    names = {case: "-".join(case) for case in CASES}
    cases = [[names[case], *_between(SETTINGS[case[0]], case[1])] for case in CASES]
    in_parity("trl_loss.py", batch.folder, json.dumps(cases))
    return {case: load_file(batch.folder / f"{name}.safetensors") for case, name in names.items()}


def _between(setting: tuple[str, dict], policy: str) -> list:
    kind, fields = setting
    return [kind, policy, fields]


def objective_of(preset: str) -> Objective:
    spec = planned(f"preset={preset}", f"kl.coef={BETA}", f"algorithm.group_size={GROUP}", single=True).runs[0].spec
    return build_objective(*spec.objective_parts)


def ours(batch: Batch, preset: str, policy: str) -> tuple[torch.Tensor, float, dict[str, torch.Tensor]]:
    """Advantages, loss and gradient of the production learner, stopped before it steps."""
    objective, network = objective_of(preset), getattr(batch, policy).network
    optimiser, gradient = torch.optim.SGD(network.parameters(), lr=0.0), {}
    optimiser.register_step_pre_hook(
        lambda *_: gradient.update({name: p.grad.clone() for name, p in network.named_parameters()})
    )
    learner = Learner(
        policy=getattr(batch, policy),
        reference=partial(states, batch.base),
        optimiser=optimiser,
        objective=objective,
        temperature=TEMPERATURE,
        max_length=LENGTH,
        minibatches=1,
        micro_batch_size=7,
        max_grad_norm=math.inf,
        ranks=ALONE,
    )
    scores, mask = batch.scores, batch.generation.tokens.mask
    advantages = objective.advantages(batch.rewards, scores.old_logprobs, scores.ref_logprobs, mask, BETA)
    metrics = learner.update(batch.generation, scores, advantages, BETA, None)
    return advantages, float(metrics["loss"]), gradient


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """‖ours − theirs‖ / ‖theirs‖."""
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def test_the_batch_can_tell_settings_apart(batch):
    """Responses of different lengths, cut ones, groups with and without signal, and ratios outside the clip."""
    tokens = batch.generation.tokens
    assert len(set(tokens.lengths.tolist())) > 2
    assert len(set(tokens.prompt_mask.sum(1).tolist())) > 1
    assert 0 < batch.generation.truncated.float().mean() < 1
    spread = batch.rewards.view(-1, GROUP).std(1)
    assert (spread == 0).any()
    assert (spread > 0).sum() > 3
    log_ratio = (batch.scores.old_logprobs - batch.scores.ref_logprobs) * tokens.mask
    assert log_ratio.abs().max() > 0.3


@pytest.mark.parametrize(("preset", "policy"), CASES)
def test_advantages_loss_and_gradient_are_trls(batch, found, preset, policy):
    theirs = found[preset, policy]
    advantages, loss, gradient = ours(batch, preset, policy)
    mask = batch.generation.tokens.mask
    if "ref_per_token_logps" in theirs:
        assert distance(batch.scores.ref_logprobs * mask, theirs["ref_per_token_logps"] * mask) < 1e-5
        assert distance(batch.scores.old_logprobs * mask, theirs["old_per_token_logps"] * mask) < 1e-5
    assert distance(advantages[:, 0], theirs["advantages"]) < 1e-5
    # on-policy, the loss of RLOO is a mean of advantages: 0
    assert loss == pytest.approx(theirs["loss"].item(), rel=1e-5, abs=1e-6)
    assert gradient.keys() == {key.removeprefix("grad/") for key in theirs if key.startswith("grad/")}
    joined = torch.cat([gradient[key].flatten() for key in gradient])
    assert distance(joined, torch.cat([theirs[f"grad/{key}"].flatten() for key in gradient])) < 1e-5
