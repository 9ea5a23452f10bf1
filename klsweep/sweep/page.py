"""The status of a sweep as one self-contained page that reads well at the width of a phone."""

import html
from typing import Any

from klsweep.cells import describe

STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 0 auto; padding: 12px; max-width: 60em; color: #222; }
h1 { font-size: 1.2em; overflow-wrap: anywhere; } h2 { font-size: 1em; margin: 1.2em 0 .3em; }
.counts { display: flex; flex-wrap: wrap; gap: 8px; }
.counts span, .state { border-radius: 6px; padding: 2px 8px; background: #eee; }
.done { background: #d5f0d8 !important; } .running { background: #d8e6fb !important; }
.failed, .timeout { background: #f8d4d0 !important; } .preempted, .diverged { background: #fbe9c4 !important; }
.bar { height: 6px; border-radius: 3px; background: #ddd; margin-top: 4px; }
.bar div { height: 100%; border-radius: 3px; background: #4a7fd0; }
li { list-style: none; border-top: 1px solid #ddd; padding: 8px 0; overflow-wrap: anywhere; } ul { padding: 0; }
small { color: #666; } pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: 8px; }
"""


def status_page(status: dict[str, Any]) -> str:
    """HTML of what `sweep_status` returned: counts, failures by cause, a line per run."""
    counts = "".join(f'<span class="{_e(state)}">{n} {_e(state)}</span>' for state, n in status["counts"].items())
    trouble = f"<p><b>SLURM does not answer:</b> {_e(status['slurm'])}</p>" if status["slurm"] else ""
    failures = "".join(
        f"<h2>{failure['count']} {_e(failure['state'])}: {_e(failure['cause'] or '')}</h2>"
        + (f"<pre>{_e(chr(10).join(failure['last_lines']))}</pre>" if failure["last_lines"] else "")
        for failure in status["failures"]
    )
    names = describe(status["runs"]) if status["runs"] else {}
    runs = "".join(_run(run, names[run["cell_id"]]) for run in status["runs"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(status['sweep'])}</title><style>{STYLE}</style></head><body>"
        f'<h1>{_e(status["sweep"])}</h1><div class="counts">{counts}</div>'
        f"<p><small>{_e(status['time'])}</small></p>{trouble}{failures}"
        f"<h2>{len(status['runs'])} runs</h2><ul>{runs}</ul></body></html>\n"
    )


def _run(run: dict[str, Any], name: str) -> str:
    done = run["update"] or 0
    share = 100 * done / run["updates"]
    facts = [f"update {done}/{run['updates']}", f"attempt {run['attempt']}"]
    facts += [f"job {run['job']}"] if run["job"] else []
    facts += [str(fact) for fact in (run["queue"], run["cause"]) if fact]
    return (
        f'<li><span class="state {_e(run["state"])}">{_e(run["state"])}</span> {_e(name)} seed {run["seed"]}<br>'
        f"<small>{_e(run['run_id'])} · {_e(' · '.join(facts))}</small>"
        f'<div class="bar"><div style="width:{share:.0f}%"></div></div></li>'
    )


def _e(text: Any) -> str:
    return html.escape(str(text))
