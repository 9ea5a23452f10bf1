"""Bad configuration: one line with field, value and choices, exit code 2, and nothing written."""

import pytest

from klsweep.cli import main

CASES = {
    "unknown key": (["train", "kl.ceof=1"], "kl.ceof: unknown key (did you mean 'coef'? keys of kl: coef, schedule"),
    "unknown node": (["train", "kll.coef=1"], "kll.coef: unknown key (did you mean 'kl'?"),
    "added key": (["train", "+foo=1"], "foo: unknown key (choose from"),
    "removed node": (["train", "~kl"], "kl=None: expected"),
    "node as number": (["train", "kl=3"], "kl=3: expected"),
    "unknown choice": (["train", "estimator=k9"], "estimator='k9': choose from abs,"),
    "unknown choice of a sweep": (["sweep", "estimator=k1,k9"], "estimator='k9': choose from abs,"),
    "unknown group": (["train", "estimater=k1"], "estimater: unknown key (did you mean 'estimator'?"),
    "unknown model": (["train", "model=qwen"], "model='qwen': choose from llama3_1_8b_instruct, qwen2"),
    "unknown experiment": (["sweep", "experiment=nothing"], "experiment='nothing': choose from"),
    "wrong type": (["train", "kl.coef=abc"], "kl.coef='abc': Input should be a valid number"),
    "wrong type in a sweep": (["sweep", "kl.coef=0.1,abc"], "kl.coef='abc': Input should be a valid number"),
    "null": (["train", "kl.coef=null"], "kl.coef=null: Input should be a valid number"),
    "empty": (["train", "kl.coef="], "kl.coef='': Input should be a valid number"),
    "NaN": (["train", "kl.coef=nan"], "kl.coef=nan: Input should be a finite number"),
    "infinite": (["train", "train.lr=inf"], "train.lr=inf: Input should be a finite number"),
    "negative beta": (["train", "kl.coef=-0.1"], "kl.coef=-0.1: Input should be greater than or equal to 0"),
    "schedule": (
        ["train", "kl.schedule=step"],
        "kl.schedule='step': Input should be 'constant', 'linear', 'cosine' or 'adaptive'",
    ),
    "tau zero": (["train", "clip=fixed", "clip.tau=0"], "clip.tau=0: Input should be greater than 0"),
    "tau negative though inert": (["train", "clip.tau=-1"], "clip.tau=-1: Input should be greater than 0"),
    "clip mode": (["train", "clip=fixed", "clip.mode=soft"], "clip.mode='soft': Input should be 'hard' or 'straight_t"),
    "clip level": (["train", "clip=fixed", "clip.level=word"], "clip.level='word': Input should be 'token' or 'sequ"),
    "credit": (
        ["train", "placement.credit=all"],
        "placement.credit='all': Input should be 'sequence', 'to_go' or 'token'",
    ),
    "loss level": (["train", "placement=loss", "placement.level=word"], "placement.level='word': Input should be"),
    "negative seed": (["train", "seed=-1"], "seed=-1: Input should be greater than or equal to 0"),
    "fractional seed": (["train", "seed=1.5"], "seed=1.5: Input should be a valid integer"),
    "boolean seed": (["train", "seed=true"], "seed=True: Input should be a valid integer"),
    "no updates": (["train", "train.updates=0"], "train.updates=0: Input should be greater than 0"),
    "float updates": (["train", "train.updates=1e3"], "train.updates=1000.0: Input should be a valid integer"),
    "learning rate": (["train", "train.lr=0"], "train.lr=0: Input should be greater than 0"),
    "micro-batch": (["train", "train.micro_batch_size=0"], "train.micro_batch_size=0: Input should be greater than 0"),
    "minibatches": (["train", "train.minibatches=5"], "train.minibatches=5 must divide train.prompts_per_update=32"),
    "lag": (["train", "sampling=off_policy", "sampling.async_level=-1"], "sampling.async_level=-1: Input should be"),
    "lag though inert": (["train", "sampling.async_level=-1"], "sampling.async_level=-1: Input should be greater"),
    "group of one": (["train", "algorithm.group_size=1"], "algorithm.group_size=1: Input should be greater than or eq"),
    "empty group": (["train", "algorithm=reinforce", "algorithm.group_size=0"], "algorithm.group_size=0: Input should"),
    "ratio clip": (["train", "algorithm.clip_low=-0.2"], "algorithm.clip_low=-0.2: Input should be greater than 0"),
    "aggregation": (["train", "algorithm.aggregation=sum"], "algorithm.aggregation='sum': Input should be 'seq-sum'"),
    "temperature": (["train", "rollout.temperature=0"], "rollout.temperature=0: Input should be greater than 0"),
    "top-p": (["train", "rollout.top_p=1.1"], "rollout.top_p=1.1: Input should be less than or equal to 1"),
    "pass@k": (["train", "eval.pass_at=[8]"], "eval.pass_at=[8] needs at least that many samples"),
    "W&B mode": (["train", "wandb.mode=on"], "wandb.mode='on': Input should be 'offline', 'online' or 'disabled'"),
    "workers": (["train", "launcher.parallel=0"], "launcher.parallel=0: Input should be greater than 0"),
    "model folder": (["train", "model.path=/no/such/folder"], "model.path='/no/such/folder': no such folder"),
    "relative model folder": (["train", "model.path=./none"], "model.path='./none': no such folder"),
    "responses too long for the model": (
        ["train", "task.max_response_tokens=256"],
        "task.max_response_tokens=256: model.path='klsweep/tiny' has positions for 256 tokens",
    ),
    "responses of a suite too long": (
        ["train", "eval.suites.max.max_response_tokens=300"],
        "eval.suites.max.max_response_tokens=300: model.path='klsweep/tiny' has positions for 256",
    ),
    "dtype": (["train", "model.dtype=float16"], "model.dtype='float16': Input should be 'float32' or 'bfloat16'"),
    "too many prompts": (["train", "task.train_prompts=100000"], "'add' has only 10000 distinct prompts"),
    "trained on what is evaluated": (
        ["train", "task.eval_prompts=8"],
        "eval.suites.add: 56 of its prompts are trained",
    ),
    "operation": (["train", "task.operation=divide"], "task.operation='divide': Input should be 'add',"),
    "a clip of nothing": (["train", "clip=fixed", "clip.tau=null"], "clip: clip=fixed needs a bound (clip.tau, clip.l"),
    "clip bound of the wrong sign": (
        ["train", "clip=fixed", "clip.low=0.5"],
        "clip.low=0.5: Input should be less than",
    ),
    "gradient": (
        ["train", "estimator.gradient=k9"],
        "estimator.gradient='k9': Input should be 'same', 'k1', 'k2', 'k3'",
    ),
    "KL weight": (
        ["train", "placement=loss", "kl.weight=word"],
        "kl.weight='word': Input should be 'none', 'token' or",
    ),
    "weight in the reward": (
        ["train", "kl.weight=token"],
        "kl.weight=token weighs the KL loss: a KL in the reward inh",
    ),
    "adaptive without a target": (["train", "kl.schedule=adaptive"], "kl.schedule=adaptive needs kl.target (nats"),
    "adaptive too fast": (
        ["train", "kl.schedule=adaptive", "kl.target=1.0", "kl.horizon=51.0"],
        "kl.horizon=51 lets one update of 256 sequences turn β negative (give more than 51.2)",
    ),
    "correction floor": (
        ["train", "correction=masked", "correction.floor=3.0"],
        "correction.floor=3.0 is above correction.cap=2.0",
    ),
    "full per token": (["train", "estimator=full", "placement.credit=token"], "estimator=full with placement.credit=t"),
    "full with a clip": (["train", "estimator=full", "clip=fixed"], "estimator=full has no clip"),
    "to_go inside": (["train", "placement.credit=to_go", "placement.baseline=inside"], "placement.baseline=inside nee"),
    "nothing left": (["sweep", "estimator=full", "clip=fixed"], "nothing to run: all 1 cells are excluded (estimator="),
    "no equals sign": (["train", "k1"], "override 'k1': missing EQUAL"),
    "several in train": (["train", "estimator=k1,k2"], "estimator=k1,k2: train runs one cell"),
    "two experiments": (["sweep", "experiment=quickstart,other"], "one experiment at a time"),
    "a glob of nothing": (["sweep", "estimator=glob(z*)"], "estimator=glob(z*): matches none of abs,"),
    "removed seed": (["train", "~seed"], "seed: missing (keys: name, seed"),
    "huge seed": (["train", "seed=99999999999999999999"], "seed=99999999999999999999: Input should be less than"),
    "the base of an axis": (
        ["train", "algorithm._target_=klsweep.objective.advantage.Algorithm"],
        "not a choice of algorithm (a subclass of klsweep.objective.advantage.Algorithm)",
    ),
    "a part of another axis": (["train", "estimator._target_=klsweep.objective.clip.NoClip"], "not a choice of estim"),
    "a list as a choice": (["sweep", "estimator=[k1,k3]"], "estimator=[k1,k3]: a list is no choice (for a sweep over"),
    "null as a choice": (["train", "estimator=null"], "estimator=null: expected the name of a choice"),
    "--cfg of a sweep": (["sweep", "--cfg", "job", "estimator=k1,k3"], "estimator=k1,k3: --cfg shows one cell"),
    "sweep folder in nowhere": (["plan", "sweep_dir=/proc/version/x"], "sweep_dir='/proc/version/x': no folder that"),
    "empty sweep folder": (["plan", "sweep_dir="], "sweep_dir='': no folder that can be written to"),
    "interval": (["sweep", "kl.coef=interval(0,1)"], "an interval is no list of values"),
    "two folders": (["sweep", "sweep_dir=a,b"], "sweep_dir=a,b: a sweep has one folder"),
    "foreign target": (["train", "estimator._target_=os.system"], "estimator._target_='os.system': only targets in"),
    "absent target": (
        ["train", "estimator._target_=klsweep.objective.kl.K9"],
        "module 'klsweep.objective.kl' has no att",
    ),
    "no component": (["train", "estimator._target_=klsweep.cli.main"], "not a component class"),
    "config folder": (["plan", "--config-dir", "/no/such"], "--config-dir='/no/such': no such folder"),
    "no sweep there": (["compare", "/no/such"], "/no/such: no sweep there"),
    "no status there": (["status", "/no/such"], "/no/such: no sweep there"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_one_line_and_exit_code_2(name, in_tmp, capsys):
    arguments, message = CASES[name]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("klsweep: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(in_tmp.iterdir()) == []


def test_a_hub_name_that_nobody_has(in_tmp, capsys, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["train", "model.path=nobody/nothing"]) == 2
    error = capsys.readouterr().err
    assert "model.path='nobody/nothing' (revision main): no such folder, not in the local Hugging Face cache" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("k1", "_target_: foo.Bar\n", "--config-dir: estimator/k1.yaml has the name of a shipped file"),
        ("broken", "_target_: [unclosed\n", "while parsing a flow sequence"),
    ],
)
def test_bad_files_of_ones_own(name, text, message, in_tmp, capsys):
    (in_tmp / "estimator").mkdir()
    (in_tmp / "estimator" / f"{name}.yaml").write_text(text)
    assert main(["plan", f"estimator={name}", "--config-dir", str(in_tmp)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_without_weights(in_tmp, capsys):
    (in_tmp / "empty").mkdir()
    assert main(["train", "model.path=./empty", "sweep_dir=s"]) == 2
    assert "holds no *.safetensors weights" in capsys.readouterr().err


def test_a_gpu_that_is_not_there(in_tmp, capsys, monkeypatch):
    monkeypatch.setattr("klsweep.sweep.plan.device_count", lambda: 0)
    assert main(["train", "model.device=cuda", "sweep_dir=s"]) == 2
    assert capsys.readouterr().err.startswith("klsweep: error: model.device=cuda: there is no GPU here")
    assert not (in_tmp / "s").exists()


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("grid: [{estimatr: [k1]}]", "estimatr: unknown key (did you mean 'estimator'?"),
        ("grid: [{estimator: [k9]}]", "estimator='k9': choose from abs,"),
        ("grid: [{kl.cof: [1.0]}]", "kl.cof: unknown key (did you mean 'coef'?"),
        ("grid: [{estimator: []}]", "grid[0].estimator=[]: expected at least one value"),
        ("grid: [estimator]", "grid[0]='estimator': expected a mapping"),
        ("exclude: [{when: {estimator: k1}}]", "expected when (a mapping) and reason"),
        ("exclude: [{when: estimator, reason: x}]", "expected when (a mapping) and reason"),
        ("kl: {coef: -1.0}", "kl.coef=-1.0: Input should be greater than or equal to 0"),
    ],
)
def test_a_bad_experiment_file(yaml, message, in_tmp, capsys):
    (in_tmp / "experiment").mkdir()
    (in_tmp / "experiment" / "mine.yaml").write_text(f"# @package _global_\nname: mine\n{yaml}\n")
    assert main(["sweep", "experiment=mine", "--config-dir", str(in_tmp)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (in_tmp / "sweeps").exists()
