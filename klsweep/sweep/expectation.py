"""What a plan may say beforehand: which KL terms take the same gradient in expectation.

From the identities E_π[∇log π] = 0 and ∇E_π[k] = E_π[k ∇log π] + E_π[∇k]. They hold on policy without
truncated sampling, for one optimiser step per batch, and an aggregation whose normaliser does not depend on the
responses; elsewhere nothing is claimed.
"""

from klsweep.config.identity import Canonical

EXACT = "the gradient of the sequence KL"
LOCAL = "the token-local part of the KL gradient"


def expected_gradient(flat: Canonical) -> str | None:
    """Name of the expected gradient of a canonical configuration's KL term ("zero" for none), None if unclaimed."""
    exact_normaliser = flat.get("algorithm.aggregation") in ("seq-sum", "fixed")
    truncated = "rollout.top_p" in flat  # the sampler is then not π, and E_μ[∇log π] is not 0
    if flat["sampling"] != "OnPolicy" or "train.minibatches" in flat or truncated or not exact_normaliser:
        return None
    placement, estimator = flat["placement"], flat.get("estimator")
    level, credit = flat.get("placement.level"), flat.get("placement.credit")
    unshrunk = flat.get("placement.baseline") == "outside" or flat["algorithm"] in ("Reinforce", "RLOO")
    if flat.get("clip") == "FixedClip":
        if flat["clip.level"] != "sequence":
            return None
        in_reward = placement == "InReward" and estimator == "K1" and unshrunk
        in_loss = placement == "InLoss" and estimator == "K2" and flat["clip.mode"] == "straight_through"
        return f"the KL gradient clipped at τ={flat['clip.tau']:g}" if in_reward or in_loss else None
    if placement == "InLoss" and estimator == "K1":
        return "zero"
    if placement == "InLoss":
        return {
            ("K2", "sequence"): EXACT,
            ("K2", "token"): LOCAL,
            ("Full", "token"): LOCAL,
        }.get((str(estimator), str(level)))
    if placement == "InReward" and estimator == "K1" and unshrunk:
        return EXACT
    if placement == "InRewardAndLoss" and unshrunk and credit in ("sequence", "to_go"):
        product_rule = estimator == "K1" or (estimator in ("K3", "Full") and level == "token")
        return EXACT if product_rule else None
    return None
