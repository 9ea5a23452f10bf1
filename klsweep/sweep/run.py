"""Carrying out a plan on this machine."""

from klsweep.record import FINISHED
from klsweep.sweep.launch_local import launch
from klsweep.sweep.plan import Plan, write_plan
from klsweep.sweep.progress import SweepProgress
from klsweep.terminal import console


def run_plan(plan: Plan) -> int:
    """Write the sweep folder and execute what is not finished; the number of runs that did not end well."""
    write_plan(plan)
    states: list[str] = []
    if not plan.to_run:
        return 0
    launcher = plan.to_run[0].spec.launcher
    with SweepProgress(plan, console(stderr=True)) as progress:

        def on_end(folder, status) -> None:
            states.append(status["state"])
            progress.on_end(folder, status)

        launch(launcher, [plan.folder.run(run.run_id) for run in plan.to_run], progress.on_update, on_end)
    # running: another launcher took it between our look and our claim
    return sum(state not in (*FINISHED, "running") for state in states)
