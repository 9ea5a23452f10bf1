"""`python -m klsweep.train`: a plain Hydra application, for Hydra's own multirun, launchers and sweepers.

It writes the same run folders as `klsweep train` and `klsweep sweep`, which plan a whole grid first, reuse workers and
report errors in one line; prefer those.
"""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from klsweep.config.build import GRID_NODES
from klsweep.config.compose import CONF
from klsweep.config.grid import Cell
from klsweep.errors import BadInput
from klsweep.sweep.plan import plan_cell
from klsweep.sweep.run import run_plan


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(config: DictConfig) -> None:
    """Run the one cell that Hydra composed."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    choices = {str(k): str(v) for k, v in HydraConfig.get().runtime.choices.items() if v and "/" not in str(k)}
    node = {str(k): v for k, v in plain.items() if k not in GRID_NODES}
    hydra_config = HydraConfig.get()
    try:
        plan = plan_cell(Cell({**node, "choices": choices}, choices, {}), list(hydra_config.overrides.task))
    except BadInput as error:
        print(f"klsweep: error: {error}", file=sys.stderr)
        if hydra_config.mode == RunMode.MULTIRUN:
            raise  # Hydra goes on with the other cells and fails in the end
        sys.exit(2)
    if run_plan(plan):
        raise RuntimeError(f"{plan.runs[0].run_id} did not end well: klsweep status {plan.folder.path}")
    print(*(plan.folder.run(run.run_id).path for run in plan.runs))


if __name__ == "__main__":
    main()
