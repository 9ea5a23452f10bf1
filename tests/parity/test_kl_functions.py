"""The presets of verl and OpenRLHF against those libraries' own KL functions, on a grid of log-ratios."""

import json

import numpy as np
import pytest

from klsweep.audit.cases import cases
from klsweep.config.compose import composer
from tests.audit.test_presets import token

pytestmark = pytest.mark.slow

LOG_RATIOS = [*np.linspace(-25, 25, 101).round(2).tolist(), -2.62, -2.61, -0.03, 0.07, 0.6]
RHOS = [1.0, 0.7, 12.0]  # the last one is beyond OpenRLHF's cap of 10
UNBIASED = "openrlhf_unbiased"


def _settings() -> dict[tuple[str, str], tuple[str, str, str]]:
    """(preset, our estimator) → library, version and the library's name of the estimator, from the presets."""
    with composer() as session:
        nodes = {name: session.compose([f"preset={name}"]).config["preset"] for name in session.options("preset")}
    return {
        (name, estimator): (node["library"], str(node["version"]), own)
        for name, node in nodes.items()
        if node["library"] in ("verl", "OpenRLHF")
        for estimator, own in node["estimators"].items()
    }


SETTINGS = _settings()


@pytest.fixture(scope="module")
def found(in_parity, tmp_path_factory):
    out = tmp_path_factory.mktemp("kl") / "points.json"
    requests = [[library, own, preset == UNBIASED] for (preset, _), (library, _, own) in SETTINGS.items()]
    in_parity("kl_functions.py", out, *map(json.dumps, (LOG_RATIOS, RHOS, requests)))
    read = json.loads(out.read_text())
    return read["versions"], dict(zip(SETTINGS, read["points"], strict=True))


@pytest.mark.parametrize(("preset", "estimator"), SETTINGS)
def test_value_and_derivative_are_the_librarys(found, preset, estimator):
    versions, points = found
    library, version, _ = SETTINGS[preset, estimator]
    assert versions[library] == version
    with composer() as session:
        (case,), _ = cases(session, [f"preset={preset}", f"estimator={estimator}"], "", whole=True)
    grid = [(log_ratio, rho) for log_ratio in LOG_RATIOS for rho in RHOS]
    ours = np.array([token(case.objective, *at) for at in grid])
    # OpenRLHF computes in float32, where k3 near 0 keeps an absolute precision only
    np.testing.assert_allclose(ours, points[preset, estimator], rtol=1e-5, atol=1e-6)
