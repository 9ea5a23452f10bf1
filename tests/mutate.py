"""Break the objective, the record and the theory on purpose, one line at a time: which test notices?

`make mutations` copies the repository to a temporary folder, applies each mutation there and runs the tests of that
part. It fails if a mutation survives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# (what goes wrong, file, line as it is, line as it becomes)
OBJECTIVE = [
    ("sign of k3's exponent", "kl.py", "torch.expm1(-log_ratio) + log_ratio", "torch.expm1(log_ratio) + log_ratio"),
    ("k2 without its half", "kl.py", "0.5 * log_ratio.square()", "log_ratio.square()"),
    ("full weighs with the reference", "kl.py", "p = log_p.exp()", "p = log_q.exp()"),
    (
        "straight-through without detach",
        "clip.py",
        "log_ratio.clamp(low, high).detach() +",
        "log_ratio.clamp(low, high) +",
    ),
    ("a clip that is not symmetric", "clip.py", "None if self.tau is None else -self.tau", "None"),
    (
        "output clamp at the other stage",
        "clip.py",
        'self.clamp_stage == "before_weight"',
        'self.clamp_stage == "after_weight"',
    ),
    ("a clip in both halves", "clip.py", 'self if self.half in (None, "both", half) else NO_CLIP', "self"),
    (
        "KL rewarded instead of charged",
        "placement.py",
        "algorithm.advantage(rewards) - beta * total",
        "algorithm.advantage(rewards) + beta * total",
    ),
    ("reward so far instead of to go", "placement.py", "values.flip(1).cumsum(1).flip(1)", "values.cumsum(1)"),
    ("full charged at its own token", "placement.py", "sums - values if skip_current else sums", "sums"),
    ("credit token as to_go", "placement.py", 'self.credit == "to_go"', 'self.credit != "sequence"'),
    (
        "clip after the estimator",
        "placement.py",
        'self._value(self.clip(ref_log_ratio, "token"), ref_log_ratio, exact_kl, weight)',
        'self.clip(self._value(ref_log_ratio, ref_log_ratio, exact_kl, weight), "token")',
    ),
    (
        "mean over tokens instead of sum",
        "placement.py",
        "kl.tokens(ref_log_ratio, exact_kl, weight).sum(1)",
        "kl.tokens(ref_log_ratio, exact_kl, weight).mean(1)",
    ),
    ("another gradient doubles the value", "placement.py", "+ (surrogate - surrogate.detach())", "+ surrogate"),
    (
        "clip_gradient ignored",
        "placement.py",
        "clipped if self.estimator.clip_gradient else ref_log_ratio",
        "ref_log_ratio",
    ),
    (
        "a charge that carries a gradient",
        "objective.py",
        "(masked(old_logprobs, mask) - masked(ref_logprobs, mask)).detach()",
        "(masked(old_logprobs, mask) - masked(ref_logprobs, mask))",
    ),
    (
        "old and sampler swapped in the KL weight",
        "objective.py",
        "self.kl.weights(logprobs, old_logprobs, sampler_logprobs)",
        "self.kl.weights(logprobs, sampler_logprobs, old_logprobs)",
    ),
    (
        "correction upside down",
        "objective.py",
        "self.correction(old_logprobs - sampler_logprobs)",
        "self.correction(sampler_logprobs - old_logprobs)",
    ),
    ("padding not masked", "objective.py", "return values.masked_fill(mask == 0, 0.0)", "return values"),
    (
        "loss_estimator ignored",
        "objective.py",
        'return estimator if name in (None, "same") else estimator_named(name, estimator)',
        "return estimator",
    ),
    (
        "KL normalised by the policy's count",
        "objective.py",
        "self.kl_aggregation, max_length) / counts.kl",
        "self.kl_aggregation, max_length) / counts.policy",
    ),
    (
        "product instead of sum of ratios averaged",
        "importance.py",
        "log_ratio.sum(1, keepdim=True)",
        "log_ratio.mean(1, keepdim=True)",
    ),
    ("cap ignored", "importance.py", "total if cap is None else total.clamp(max=math.log(cap))", "total"),
    (
        "masked weights cut instead of dropped",
        "importance.py",
        "weight.where((weight >= self.floor) & (weight <= self.cap), 0.0)",
        "weight.clamp(self.floor, self.cap)",
    ),
    (
        "detached weight differentiated",
        "regulariser.py",
        'if self.weight_grad == "detached":',
        'if self.weight_grad == "never":',
    ),
    (
        "loss half takes the reward's β",
        "regulariser.py",
        "scale * (c + (d - c) * progress)",
        "scale * (a + (b - a) * progress)",
    ),
    (
        "adaptive β not limited",
        "regulariser.py",
        "error = min(max(kl / self.target - 1.0, -MOST_ADAPTED), MOST_ADAPTED)",
        "error = kl / self.target - 1.0",
    ),
    ("a plain mean for leave-one-out", "advantage.py", "* group_size / (group_size - 1)", ""),
    ("std with ddof 0", "advantage.py", "correction=1)", "correction=0)"),
    ("a group's std without its epsilon", "advantage.py", "correction=1) + epsilon", "correction=1) + 1e-6"),
    ("a ratio that is not clipped", "policy_loss.py", "ratio.clamp(1.0 - clip_low, 1.0 + clip_high)", "ratio"),
    ("a sequence's ratio taken per token", "policy_loss.py", "(log_ratio, level)", '(log_ratio, "token")'),
    ("optimistic ratio clipping", "policy_loss.py", "-torch.minimum(", "-torch.maximum("),
    (
        "seq-mean by the longest",
        "reduce.py",
        "return 1.0 / lengths",
        "return lengths.new_full(lengths.shape, 1.0 / max_length)",
    ),
]


RECORD = [
    (
        "an attempt that never finds itself lost",
        "record/claims.py",
        "return not (self.folder(number) / self.ending)",
        "return True or (self.folder(number) / self.ending)",
    ),
    (
        "two who take the same turn",
        "record/files.py",
        "return read_json(folder / name) == content  #",
        "return True  #",
    ),
    (
        "two who end the same attempt",
        "record/files.py",
        "return os.fstat(stream.fileno()).st_nlink == 2",
        "return True",
    ),
    ("a half line left by a full disk", "record/files.py", "os.ftruncate(descriptor, end - written)", "pass"),
    ("rows after the checkpoint kept", "record/files.py", 'if row["update"] <= after_update))', "if True))"),
    (
        "late checkpoints of the replaced",
        "record/folder.py",
        "return all(update <= start",
        "return True or all(update <= start",
    ),
    (
        "a job takes its run from itself",
        "record/folder.py",
        'claimed["restart"] < job.restart',
        'claimed["restart"] <= job.restart',
    ),
    (
        "cancelled runs begin",
        "record/folder.py",
        'if status["state"] in (*FINISHED, "cancelled"):',
        'if status["state"] in FINISHED:',
    ),
    (
        "finished runs begin again",
        "record/folder.py",
        'if status["state"] in (*FINISHED, "cancelled"):',
        'if status["state"] == "cancelled":',
    ),
    (
        "an adaptive β begins anew",
        "training/checkpoint.py",
        'State(content["update"], content["beta_scale"], waiting,',
        'State(content["update"], 1.0, waiting,',
    ),
    (
        "a calibrated clip begins anew",
        "training/checkpoint.py",
        'Calibrated(**content.get("calibrated", {}))',
        "Calibrated()",
    ),
    (
        "waiting rollouts forgotten",
        "training/checkpoint.py",
        'State(content["update"], content["beta_scale"], waiting,',
        'State(content["update"], content["beta_scale"], [],',
    ),
    (
        "the optimiser begins anew",
        "training/share.py",
        "        if with_optimiser:",
        "        if False:",
    ),
    (
        "checksums not looked at",
        "training/checkpoint.py",
        "return file.exists() and sha256(file) == digest",
        "return file.exists()",
    ),
    (
        "state.json believed",
        "training/checkpoint.py",
        'if content.get("own_sha256") != _digest(content):',
        "if not content:",
    ),
    ("optimiser kept after the end", "training/checkpoint.py", "if path.name not in weights:", "if False:"),
    (
        "finished rollouts not kept",
        "training/loop.py",
        "if trainer.repeats_itself:\n            return",
        "if True:\n            return",
    ),
    ("milestones left out", "training/loop.py", "if update in spec.checkpoint.keep_at:", "if False:"),
    (
        "one failure too many",
        "sweep/budget.py",
        "if ends.count(state) > (allowed",
        "if ends.count(state) - 1 > (allowed",
    ),
    ("no progress is fine", "sweep/budget.py", "if len(tries) >= idle and all(", "if False and all("),
    (
        "a worker that never stops",
        "sweep/pool.py",
        "if time.monotonic() > self._deadline:\n            for",
        "if False:\n            for",
    ),
    (
        "a silent machine is believed for ever",
        "sweep/status.py",
        "if (owner is not None and owner.is_here()) or silent < LOST_SECONDS:",
        "if True:",
    ),
]

THEORY = [
    ("α without a tail", "bound.py", "math.log(2 / delta)", "math.log(1 / delta)"),
    ("α grows with K", "bound.py", "1 + 1 / math.sqrt(rollouts)", "1 + math.sqrt(rollouts)"),
    ("β in the rewards' own units", "bound.py", "beta / rewards.width,", "beta,"),
    ("half the clip's width", "bound.py", "(clip.low + clip.high)) * alpha", "clip.high) * alpha"),
    ("another quantile", "clip_threshold.py", "None, 2 * alpha))", "None, alpha))"),
    ("KL off at the edge only", "clip_threshold.py", "if 2 * alpha >= active:", "if 2 * alpha > 1:"),
    ("rollouts resampled one by one", "clip_threshold.py", "counts[owner]", "rng.permutation(counts[owner])"),
    ("one prompt too few", "clip_threshold.py", "(share / active) ** 2) + 1", "(share / active) ** 2)"),
    ("few rollouts only", "budget.py", "np.concatenate([few, costs", "np.concatenate([few * 0, costs"),
    ("few prompts only", "budget.py", "- costs.prefill) / costs.decode)", "- costs.prefill) / 9e9)"),
    ("K₀ of equal groups", "variance.py", "(sizes**2).sum() / total)", "total / n)"),
    ("variance with ddof 0", "coverage.py", "group.var(ddof=1)", "group.var()"),
    (
        "evaluated on what is calibrated on",
        "decomposition.py",
        "setting.bound(clip, evaluation)",
        "setting.bound(clip, calibration)",
    ),
    ("calibrated on everything", "decomposition.py", "clip = setting.clip(calibration)", "clip = setting.clip(found)"),
    ("α of another n", "decomposition.py", "replace(setting, prompts=prompts, rollouts", "replace(setting, rollouts"),
    ("C without its square", "coverage.py", "(p[held] ** 2 / q[held])", "(p[held] / q[held])"),
    ("PAC-Bayes without √n", "pac_bayes.py", "math.sqrt(prompts) / delta", "1 / delta"),
    ("KL the wrong way round", "pac_bayes.py", "solve_triangular(prior, factor", "solve_triangular(factor, prior"),
    ("noise of steps, not of time", "pac_bayes.py", "(step, learning_rate * noise)", "(step, noise)"),
]

PARTS = (
    (Path("klsweep/objective"), OBJECTIVE, ["tests/objective", "tests/audit/test_bias.py"]),
    (
        Path("klsweep"),
        RECORD,
        ["tests/test_record.py", "tests/test_budget.py", "tests/test_training.py", "tests/test_resume.py"],
    ),
    (Path("klsweep/theory"), THEORY, ["tests/theory"]),
)


def main() -> int:
    """Print a line per mutation; the number that no test noticed."""
    mutations = [
        (folder / name, what, old, new, tests) for folder, part, tests in PARTS for what, name, old, new in part
    ]
    for file, _, old, _, _ in mutations:
        if (found := (ROOT / file).read_text().count(old)) != 1:
            raise SystemExit(f"{file}: {old!r} stands there {found} times, not once")
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "klsweep"
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv*", "build", "sweeps"))
        for file, what, old, new, tests in mutations:
            original = (copy / file).read_text()
            (copy / file).write_text(original.replace(old, new))
            noticed = failing_test(copy, tests)
            (copy / file).write_text(original)
            survivors += noticed is None
            print(f"{what} ({file.name}): {noticed or 'NOBODY NOTICED'}", flush=True)
    print(f"{len(mutations)} mutations, {survivors} unnoticed")
    return survivors


def failing_test(copy: Path, tests: list[str]) -> str | None:
    """The first test that fails in a copy of the repository."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy)}  # before an editable install of the original
    output = subprocess.run(command, cwd=copy, capture_output=True, text=True, env=environment).stdout
    lines = [line.split(" - ")[0] for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].split(" ", 1)[1] if lines else None


if __name__ == "__main__":
    sys.exit(main())
