"""One run on several processes: the update of one process, the same end after a stop, and what a failure says."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from klsweep.cli import main
from klsweep.model.parallel import ALONE, Ranks, join, leave, whole
from klsweep.objective.objective import build_objective
from klsweep.record.files import read_json, read_rows
from klsweep.record.folder import RunFolder
from klsweep.sweep.job import execute
from klsweep.sweep.plan import write_plan
from klsweep.sweep.ranks import Meeting, Party
from klsweep.training.shards import TensorFiles, file_name, write
from klsweep.training.share import Share
from tests.conftest import LIGHT, planned, small_spec

pytestmark = pytest.mark.slow

TWO = ["parallel=fsdp2", "parallel.processes=2"]
# 27 rows in 3 minibatches of 9: 4 and 5 for two ranks, so with 4 at a time one of them has an idle round.
CELL = [
    "train.prompts_per_update=9",
    "algorithm.group_size=3",
    "train.minibatches=3",
    "train.micro_batch_size=4",
    "train.lr=3.0e-5",  # so that training does not amplify rounding
    "train.updates=20",
    "train.checkpoint_seconds=0",
    "checkpoint.keep_at=[20]",
    "task.train_prompts=64",
    "placement=loss",
    "estimator=full",
    "kl.schedule=adaptive",
    "kl.target=0.05",
    "kl.horizon=64",
    "sampling=off_policy",
    "sampling.async_level=1",
    "eval.samples_per_prompt=1",
    "eval.pass_at=[1]",
    *LIGHT,
]


def run(folder: Path, *overrides: str, stop_after: int | None = None, on_update=lambda *_: None) -> RunFolder:
    """Execute the cell in a sweep folder, or go on with it; stopped after an update if asked."""
    plan = planned(*CELL, *overrides, f"sweep_dir={folder}", single=True)
    write_plan(plan)
    done = [0]

    def see(update: int, row) -> None:
        done[0] = update
        on_update(update, row)

    found = plan.folder.run(plan.runs[0].run_id)
    execute(found, lambda: "preempted" if stop_after in done else None, see, threads=2)
    return found


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    files = [load_file(file) for file in sorted(folder.checkpoints.glob("update-000020/model*.safetensors"))]
    return {name: torch.cat([file[name] for file in files]) for name in files[0]}


def milestone(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.path / "models/update-000020/model.safetensors")


def assert_equal_up_to_rounding(one: RunFolder, two: RunFolder) -> None:
    rows, others = (list(read_rows(folder.metrics)) for folder in (one, two))
    assert [row["update"] for row in rows] == [row["update"] for row in others] == list(range(21))
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-6)
    ours, theirs = (torch.cat([w.flatten() for w in weights(folder).values()]) for folder in (one, two))
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-5


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> RunFolder:
    return run(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def double(tmp_path_factory) -> RunFolder:
    return run(tmp_path_factory.mktemp("double"), *TWO)


def test_two_processes_train_as_one(single, double):
    """20 updates of three steps: every metric, every evaluation, and the weights. And it is the same run."""
    assert (single.status()["state"], double.status()["state"]) == ("done", "done")
    assert single.run_id == double.run_id
    assert_equal_up_to_rounding(single, double)
    names = sorted(file.name for file in double.checkpoints.glob("*/*"))
    assert names == ["model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors", "state.json"]
    kept, whole = milestone(double), milestone(single)
    assert list(kept) == list(whole)  # of tied weights one
    assert all(
        (kept[name] - whole[name]).norm() < 1e-4 * whole[name].norm() for name in whole if "k_proj.bias" not in name
    )
    environment = read_json(double.environment)
    assert (environment["ranks"], environment["threads"]) == (2, 1)


@pytest.mark.parametrize("back", [TWO, []], ids=["2", "1"])
def test_stopped_and_resumed(double, back, tmp_path):
    """On as many processes: the same bytes. On fewer: the same up to rounding."""
    broken = run(tmp_path, *TWO, stop_after=7)
    assert broken.status()["state"] == "preempted"
    assert [path.name for path in sorted(broken.checkpoints.glob("update-*"))] == ["update-000006", "update-000007"]
    run(tmp_path, *back)
    assert broken.status()["state"] == "done"
    assert broken.attempts.claim(2)["resumed_from"] == 7
    assert_equal_up_to_rounding(broken, double)
    if back == TWO:
        assert broken.metrics.read_bytes() == double.metrics.read_bytes()
        assert all(torch.equal(weight, weights(double)[name]) for name, weight in weights(broken).items())


def test_a_rank_that_is_killed_ends_the_run_with_its_name(tmp_path):
    ranks = []

    def kill(update: int, _) -> None:
        if update == 3:
            ranks.extend(multiprocessing.active_children())
            os.kill(ranks[0].pid, signal.SIGKILL)

    broken = run(tmp_path, *TWO, on_update=kill)
    status = broken.status()
    assert status["state"] == "failed"
    assert "rank 1 on " in status["cause"]
    assert status["cause"].endswith("vanished: it ended with signal SIGKILL")
    assert not multiprocessing.active_children()
    assert run(tmp_path).status()["state"] == "done"  # and what it left is sound
    assert broken.attempts.claim(2)["resumed_from"] >= 2


def _gradients(rank: int, size: int, folder: Path, overrides: list[str]) -> None:
    """Write the gradient of one minibatch of 9 rows and its loss, gathered from all ranks."""
    torch.set_num_threads(1)
    spec = small_spec(*CELL, *overrides)
    ranks = join(dist.FileStore(str(folder / "store"), size), rank, size, "cpu") if size > 1 else ALONE
    share = Share(spec, build_objective(*spec.objective_parts), ranks)
    prompts = share.policy.encode([item.prompt for item in spec.task.train_items()[:3]])
    generator = torch.Generator().manual_seed(0)
    generation = share.generate(prompts, 3, torch.rand(9, 8, generator=generator).numpy(), 1.0, 1.0)
    scores = share.score(generation.tokens, 1.0, 4)
    advantages = torch.randn(scores.old_logprobs.shape, generator=generator)
    share.update(generation, scores, advantages, 0.3, None, 1e-3)  # away from the base, where the KL is 0
    learner, found = share._learner, {}
    loss = learner._accumulate(learner.objective, torch.arange(9), generation, scores, advantages, 0.3, _Nothing())  # pyright: ignore
    for name, parameter in share.policy.network.named_parameters():
        found[name] = whole(parameter.grad)
    found["loss"], found["kl"] = loss, share.score(generation.tokens, 1.0, 4).exact_kl
    found["tokens"] = generation.tokens.response_ids
    if rank == 0:
        torch.save(found, folder / f"{size}.pt")
    leave()


class _Nothing:
    def add(self, *_) -> None:
        pass


def test_gradients_of_two_ranks_are_those_of_one(tmp_path):
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_gradients, args=(rank, 2, tmp_path, TWO)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    _gradients(0, 1, tmp_path, [])
    for process in ranks:
        process.join(120)
    one, two = torch.load(tmp_path / "1.pt"), torch.load(tmp_path / "2.pt")
    assert torch.equal(one.pop("tokens"), two.pop("tokens"))
    assert one["loss"].abs().min() > 1e-3
    largest = max(value.abs().max() for name, value in one.items() if name.startswith("model."))
    for name, value in one.items():
        scale = largest if name.startswith("model.") else value.abs().max()
        assert (value - two[name]).abs().max() < 1e-5 * scale, name


def test_ranks_share_rows_once_and_come_equally_often():
    for size, count, batch in ((1, 7, 3), (2, 9, 2), (3, 2, 4), (4, 10, 1), (8, 27, 2)):
        rows = torch.arange(count) + 100
        rounds, seen = set(), []
        for rank in range(size):
            ranks = Ranks(rank, size)
            own = rows[ranks.mine(count)].split(batch)
            steps = list(ranks.in_step(own, rows, batch))
            rounds.add(len(steps))
            seen += [row for part, is_counted in steps if is_counted for row in part.tolist()]
            assert all(len(part) for part, _ in steps)
        assert sorted(seen) == rows.tolist()
        assert len(rounds) == 1


def test_tensor_files_are_read_whole_whoever_wrote_them(tmp_path):
    tensors = {"a": torch.arange(10.0).view(5, 2), "b": torch.arange(3.0), "a/step": torch.tensor(7.0)}
    for size in (1, 2, 4):
        folder = tmp_path / str(size)
        folder.mkdir()
        for rank in range(size):
            parts = {
                name: (list(t.chunk(size)) + [t[:0]] * size)[rank] if t.dim() else t for name, t in tensors.items()
            }
            (name,) = write(folder, file_name("model", Ranks(rank, size)), parts)
            assert name == ("model.safetensors" if size == 1 else f"model-0000{rank}-of-0000{size}.safetensors")
        files = TensorFiles(folder, "model")
        assert set(files.names()) == set(tensors)
        assert all(torch.equal(files.read(name, t), t) for name, t in tensors.items())
    with pytest.raises(FileNotFoundError, match=r"no optimiser\*\.safetensors"):
        TensorFiles(tmp_path / "1", "optimiser")


SLURM = ["launcher=slurm", "launcher.time=10"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*SLURM, "launcher.nodes=2"], "launcher.nodes=2: parallel=single trains in one process, on one node"),
        ([*SLURM, "parallel=fsdp2"], "parallel.processes=null: one per GPU, but the job asks for none"),
        (
            [*SLURM, *TWO, "launcher.runs_per_job=2", "launcher.concurrent=2"],
            "launcher.concurrent=2: runs with parallel=fsdp2 take turns in a job",
        ),
        (
            [*SLURM, "parallel=fsdp2", "parallel.processes=9", "launcher.gpus_per_node=8"],
            "parallel.processes=9: more than the 8 GPUs of a node",
        ),
        (["parallel=fsdp2", "model.device=cpu"], "parallel.processes=null: one per GPU of the node, and there is none"),
        ([*TWO, "model.reference=offload"], "model.reference=offload: with parallel=fsdp2 the reference is spread"),
        ([*TWO, "adapter=lora"], "adapter=lora: adapters are trained in one process"),
        (
            [*TWO, "sampling=off_policy", "sampling.overlap=true"],
            "sampling.overlap=True: with parallel=fsdp2 all GPUs sample, then all train",
        ),
        (
            [*TWO, *SLURM, "rollout=vllm", "rollout.tensor_parallel_size=2"],
            "rollout.tensor_parallel_size=2: with parallel=fsdp2 each rank samples by itself",
        ),
        (["parallel=fsdp3"], "parallel='fsdp3': choose from fsdp2, single"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(overrides, message, in_tmp, capsys):
    assert main(["plan", *overrides]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_signals_are_heard_again_where_a_rank_cannot_be_started(tmp_path, monkeypatch):
    def start(self) -> None:
        raise OSError("no process")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", start)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    meeting = Meeting("127.0.0.1", 1, 1, 2, 1, "cpu")
    with pytest.raises(OSError, match="no process"), Party(RunFolder(tmp_path), 1, meeting, range(1, 2)):
        pass
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
