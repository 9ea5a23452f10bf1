"""Plugins: what `plugins=[mylab.rl]` allows, finds, hashes and copies, and what is said of those that do not import."""

import subprocess
import sys

import pytest

from klsweep.cli import main
from klsweep.config.compose import composer
from klsweep.config.grid import expand
from klsweep.config.plugins import code_files, conf_folder, import_plugin, plugin_hash
from klsweep.errors import BadInput

HALF = """from klsweep.component import component
from klsweep.objective.kl import Estimator

@component
class Half(Estimator):
    def __call__(self, log_ratio, exact_kl=None):
        return log_ratio / 2
"""
NODE = "_target_: lab{}.rl.part.Half\ngradient: same\nclip_gradient: false\n"
FILES = {
    "__init__.py": "",
    "core.py": "SCALE = 2\n",
    "rl/__init__.py": "from lab{} import core\n",
    "rl/part.py": HALF,
    "rlx.py": HALF,
    "rl/conf/estimator/half.yaml": NODE,
    "rl/data/table.csv": "1\n",
    "rl/.cache/big.bin": "x",
}
number = 0  # each test gets a package of its own: an imported one cannot be imported anew


@pytest.fixture
def lab(in_tmp):
    """The name of a new package in the current folder, which Python is left to find there."""
    global number
    number += 1
    for name, text in FILES.items():
        file = in_tmp / f"lab{number}" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("{}", str(number)))
    yield f"lab{number}"
    sys.path[:] = [entry for entry in sys.path if entry != str(in_tmp)]


def cells(*overrides: str, config_dir=None):
    with composer(config_dir) as session:
        return expand(session, list(overrides)).cells


def test_the_conf_of_a_plugin_is_searched(lab):
    (cell,) = cells("estimator=half", f"plugins=[{lab}.rl]")
    assert cell.config["estimator"]["_target_"] == f"{lab}.rl.part.Half"
    assert [c.choices["estimator"] for c in cells("estimator=half,k1", f"plugins=[{lab}.rl]")] == ["half", "k1"]
    assert [c.choices["estimator"] for c in cells("estimator=glob(h*)", f"plugins=[{lab}.rl]")] == ["half"]
    with pytest.raises(BadInput, match="estimator='half': choose from abs, full, k1"):
        cells("estimator=half")


@pytest.mark.parametrize(
    ("plugin", "target", "allowed"),
    [
        ("{}.rl", "{}.rl.part.Half", True),
        ("{}", "{}.rl.part.Half", True),
        ("{}.rl", "{}.rlx.Half", False),
        ("{}.rlx", "{}.rl.part.Half", False),
    ],
)
def test_exactly_the_package_and_what_is_below_it_is_allowed(lab, capsys, plugin, target, allowed):
    arguments = [f"plugins=[{plugin.format(lab)}]", f"estimator._target_={target.format(lab)}"]
    assert main(["plan", *arguments]) == (0 if allowed else 2)
    assert ("only targets in klsweep, " in capsys.readouterr().err) is not allowed


def test_an_experiments_file_may_name_its_plugins(lab, in_tmp):
    (in_tmp / "mine/experiment").mkdir(parents=True)
    text = f"# @package _global_\ndefaults:\n  - override /estimator: half\nplugins: [{lab}.rl]\n"
    (in_tmp / "mine/experiment/study.yaml").write_text(text)
    (cell,) = cells("experiment=study", config_dir=in_tmp / "mine")
    assert (cell.choices["estimator"], cell.config["plugins"]) == ("half", [f"{lab}.rl"])


TROUBLE = {
    "missing": ([], "plugins=[nolab]: no package 'nolab' in ", "nolab"),
    "missing below": ([], ".sub]: no package ", "{}.sub"),
    "no name": ([], "is not the import path of a package", "lab/rl"),
    "what it imports is missing": (["import nosuchthing\n"], "No module named 'nosuchthing' (", "{}.rl"),
    "its code fails": (["x = 1\ny = 1 / 0\n"], "ZeroDivisionError: division by zero (", "{}.rl"),
    "no Python": (["def f(:\n"], "SyntaxError: invalid syntax (", "{}.rl"),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_a_plugin_that_does_not_import_is_one_line(name, lab, in_tmp, capsys):
    code, message, plugin = TROUBLE[name]
    for text in code:
        (in_tmp / lab / "rl/__init__.py").write_text(text)
    assert main(["plan", f"plugins=[{plugin.format(lab)}]"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    if name == "its code fails":
        assert error.endswith("rl/__init__.py, line 2)\n")


def test_names_are_taken_once(lab, in_tmp):
    (in_tmp / lab / "rl/conf/estimator/k1.yaml").write_text(NODE)
    with pytest.raises(BadInput, match=r"rl\]: estimator/k1.yaml has the name of a shipped file: rename it"):
        cells(f"plugins=[{lab}.rl]")
    (in_tmp / lab / "rl/conf/estimator/k1.yaml").unlink()
    (in_tmp / "mine/estimator").mkdir(parents=True)
    (in_tmp / "mine/estimator/half.yaml").write_text(NODE)
    with pytest.raises(BadInput, match=r"half.yaml has the name of one of --config-dir"):
        cells(f"plugins=[{lab}.rl]", config_dir=in_tmp / "mine")


def test_plugins_are_no_axis(lab):
    with pytest.raises(BadInput, match="plugins: cannot be swept"):
        cells(f"plugins=[{lab}],[{lab}.rl]")


def test_a_module_is_a_plugin_without_conf(lab, in_tmp):
    (in_tmp / f"{lab}_alone.py").write_text(HALF)
    assert conf_folder(f"{lab}_alone") is None
    assert list(code_files(f"{lab}_alone")) == [f"{lab}_alone.py"]
    (cell,) = cells(f"plugins=[{lab}_alone]", f"estimator._target_={lab}_alone.Half")
    assert cell.config["estimator"]["_target_"] == f"{lab}_alone.Half"


def test_the_code_of_a_plugin_is_its_whole_top_package_and_python_alone_is_hashed(lab, in_tmp):
    import_plugin(f"{lab}.rl")
    assert set(code_files(f"{lab}.rl")) >= {f"{lab}/core.py", f"{lab}/rl/conf/estimator/half.yaml"}
    assert f"{lab}/rl/.cache/big.bin" not in code_files(f"{lab}.rl")

    def hashed() -> str:
        script = f"from klsweep.config.plugins import plugin_hash; print(plugin_hash(['{lab}.rl']))"
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()

    before = hashed()
    assert (before, plugin_hash([])) == (plugin_hash([f"{lab}.rl"]), None)
    (in_tmp / lab / "rl/data/table.csv").write_text("2\n")
    assert hashed() == before
    (in_tmp / lab / "core.py").write_text("SCALE = 3\n")
    assert hashed() != before
