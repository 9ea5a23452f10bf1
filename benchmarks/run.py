"""Measure what users wait for, and write `benchmarks/RESULTS.md` (`make benchmark`).

Each figure is a minimum and a median over repeats in one go on one machine; ratios compare things measured side by side
here, never with figures from elsewhere.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from klsweep.config.compose import composer
from klsweep.model.policy import load_policy, score, states
from klsweep.model.policy import statistics as token_statistics
from klsweep.record.files import read_rows
from klsweep.record.folder import Attempt, RunFolder, SweepFolder
from klsweep.rollout.random import Stream, prompt_order, uniforms
from klsweep.sweep.plan import make_plan
from klsweep.tracking import Tracker
from klsweep.training.loop import train

KLSWEEP = [str(Path(sys.executable).parent / "klsweep")]
PLAN = [
    "estimator=k1,k2,k3,full,abs",
    "placement=none,reward,loss,reward_and_loss",
    "clip=none,fixed",
    "sampling=on_policy,off_policy",
    "algorithm=rloo,grpo,dr_grpo",
    "task=add,sort",
    "kl.coef=0.1,0.2,0.3",
]
UPDATES = 40
LOCAL_CLUSTER = Path(__file__).parents[1] / "slurm/local-cluster"
SPEC = [f"train.updates={UPDATES}", "wandb.mode=disabled", "launcher.threads=1"]


def seconds(action: Callable[[], object], repeats: int) -> tuple[float, float]:
    """(minimum, median) wall seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times), statistics.median(times)


def command(*arguments: str) -> Callable[[], object]:
    return lambda: subprocess.run([*KLSWEEP, *arguments], check=True, stdout=subprocess.DEVNULL)


def loop_seconds(folder: Path) -> tuple[float, float, int]:
    """One training run: seconds of its updates (without evaluation), median seconds of one, and tokens generated."""
    with composer() as session:
        spec = make_plan(session, SPEC, single=True).runs[0].spec
    run = RunFolder(folder / "run")
    run.path.mkdir(parents=True)
    attempt = run.claim()
    assert attempt is not None
    train(spec, attempt, folder / "artifacts", Tracker(None), lambda: None, lambda *_: None)
    rows = list(read_rows(run.timing))
    times = [row["seconds/total"] - row.get("seconds/eval", 0) - row.get("seconds/checkpoint", 0) for row in rows]
    tokens = sum(round(row["tokens_per_second"] * row["seconds/total"]) for row in rows)
    return sum(times), statistics.median(times), tokens


def floor_seconds() -> float:
    """The same work without klsweep around it: generate, score policy and reference, forward, backward, step."""
    with composer() as session:
        spec = make_plan(session, SPEC, single=True).runs[0].spec
    policy = load_policy(spec.model)
    network, reference = policy.network, partial(states, load_policy(spec.model))
    sampler = spec.rollout.bind(policy, spec.task.max_response_tokens)
    optimiser = torch.optim.AdamW(network.parameters(), lr=spec.train.lr)
    items, group = spec.task.train_items(), spec.algorithm.group_size
    times = []
    for update in range(1, UPDATES + 1):
        start = time.perf_counter()
        prompts = prompt_order(0, update, spec.train.prompts_per_update, len(items))
        draws = uniforms(0, Stream.ROLLOUT, update, prompts, group, spec.task.max_response_tokens)
        tokens = sampler.generate(policy.encode([items[p].prompt for p in prompts]), group, draws, 1.0, 1.0).tokens
        score(policy, reference, tokens, 1.0, spec.train.micro_batch_size)
        logprobs = token_statistics(policy, tokens, 1.0, ("logprobs",))["logprobs"]
        (-logprobs.sum() / len(prompts)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def safety_share(folder: Path) -> tuple[float, float]:
    """Shares of an update that a checkpoint after every one takes, and the looks whether the run is still ours."""
    with composer() as session:
        spec = make_plan(session, [*SPEC, "train.checkpoint_seconds=0"], single=True).runs[0].spec
    run = RunFolder(folder / "run")
    run.path.mkdir(parents=True)
    attempt = run.claim()
    assert attempt is not None
    looks, look = [], Attempt.check

    def timed(self: Attempt) -> None:
        start = time.perf_counter()
        look(self)
        looks.append(time.perf_counter() - start)

    Attempt.check = timed
    try:
        train(spec, attempt, folder / "artifacts", Tracker(None), lambda: None, lambda *_: None)
    finally:
        Attempt.check = look
    rows = list(read_rows(run.timing))
    total = sum(row["seconds/total"] - row.get("seconds/eval", 0) for row in rows)
    return sum(row["seconds/checkpoint"] for row in rows) / total, sum(looks) / total


def submit_seconds(folder: Path) -> tuple[float, float, float]:
    """Seconds to submit 1,000 runs to a SLURM started here, to show their status, and to cancel them."""
    state = ["--state", str(folder / "slurm")]
    subprocess.run([sys.executable, str(LOCAL_CLUSTER), *state, "start"], check=True, stdout=subprocess.DEVNULL)
    os.environ["SLURM_CONF"] = str(folder / "slurm/slurm.conf")
    held = ["launcher=slurm", "launcher.profile=local", "launcher.sbatch={begin: now+5hour}"]
    try:
        submitting, _ = seconds(command("sweep", "seed=range(0,1000)", *held, "sweep_dir=thousand"), 1)
        showing, _ = seconds(command("status", "thousand"), 3)
        cancelling, _ = seconds(command("cancel", "thousand"), 1)
    finally:
        subprocess.run([sys.executable, str(LOCAL_CLUSTER), *state, "stop"], check=True, stdout=subprocess.DEVNULL)
    return submitting, showing, cancelling


def replicate(source: RunFolder, row: dict, sweep: SweepFolder, count: int) -> None:
    """A sweep of `count` runs whose records are copies of a real one."""
    rows = []
    for i in range(count):
        rows.append({**row, "run_id": f"r1-{i:012d}", "cell_id": f"c1-{i // 5:012d}", "seed": i % 5})
        shutil.copytree(source.path, sweep.run(rows[-1]["run_id"]).path)
    sweep.extend_plan(rows)


def main() -> None:
    torch.set_num_threads(1)
    lines = []

    def report(what: str, figure: str) -> None:
        lines.append(f"| {what} | {figure} |")
        print(lines[-1], flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        planned = json.loads(
            subprocess.run([*KLSWEEP, "plan", *PLAN, "--json"], capture_output=True, check=True).stdout
        )
        low, median = seconds(command("plan", *PLAN), 3)
        cells = f"{planned['raw']:,} raw cells, {len(planned['runs'])} distinct"
        report(f"`klsweep plan`, {cells} (aim: under 20 s per 1,000)", f"{low:.1f} s min, {median:.1f} s median")
        command("train", "train.updates=50", "sweep_dir=one", "wandb.mode=disabled")()
        one = SweepFolder(folder / "one")
        row = one.plan()[0]
        replicate(one.run(row["run_id"]), row, SweepFolder(folder / "hundred"), 100)
        for sub in ("status", "compare"):
            low, median = seconds(command(sub, "hundred"), 7)
            text = f"{low:.2f} s min, {median:.2f} s median"
            report(f"`klsweep {sub}`, 100 runs × 50 updates, process start to end (aim: under 0.7 s)", text)
        for options, what in (
            (["audit"], "V = 2, T = 14, 51 rows (aim: under 60 s)"),
            (["audit", "--presets"], "66 rows"),
        ):
            low, median = seconds(command(*options), 3)
            report(f"`klsweep {' '.join(options)}`, {what}", f"{low:.1f} s min, {median:.1f} s median")
        pairs = [(loop_seconds(folder / f"loop{i}"), floor_seconds()) for i in range(3)]
        total, update, tokens = min(loop for loop, _ in pairs)
        report("updates per second, 32 prompts × 8 responses, one thread", f"{1 / update:.1f}")
        report("samples per second", f"{256 / update:,.0f}")
        report("generated tokens per second of training", f"{tokens / total:,.0f}")
        ratios = [loop[1] / floor for loop, floor in pairs]
        text = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        report("median update against a bare loop of the same calls, three pairs", text)
        checkpoints, looks = safety_share(folder / "safety")
        report(
            "share of an update that a checkpoint after every one takes (0.2 M parameters, with fsync)",
            f"{checkpoints:.3f}",
        )
        report("share of an update that looking whether the run is still ours takes", f"{looks:.4f}")
        if shutil.which("sbatch"):
            submitting, showing, cancelling = submit_seconds(folder)
            report("1,000 runs planned and submitted to SLURM (aim: under 30 s)", f"{submitting:.1f} s")
            report("`klsweep status` of them; `klsweep cancel` of all", f"{showing:.2f} s; {cancelling:.1f} s")
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    header = f"# Measured figures\n\nWritten by `make benchmark` on {machine}.\n\n| what | figure |\n|---|---|\n"
    (Path(__file__).parent / "RESULTS.md").write_text(header + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
