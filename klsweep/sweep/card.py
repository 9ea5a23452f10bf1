"""The model card of an exported folder: what it is, how it was trained, what it scored. Facts from the record alone."""

from typing import Any, NamedTuple

import yaml

from klsweep.model.source import SHIPPED, is_folder
from klsweep.record.files import Row, read_json, read_rows
from klsweep.record.folder import LAST_UPDATES, RunFolder
from klsweep.terminal import markdown_grid


class Exported(NamedTuple):
    """What a card is of: a run's weights after `update`, its configuration, its row in the plan, and how it ended."""

    run: RunFolder
    config: dict[str, Any]
    row: Row
    update: int
    check: str  # what reading the folder again showed, in words


def model_card(exported: Exported) -> str:
    """`README.md`, with the front matter that the Hugging Face hub reads."""
    run, _, row, update, _ = exported
    metrics = list(read_rows(run.metrics))
    parts = [
        _front_matter(exported.config["model"]["path"]),
        f"# {run.sweep.name}, {run.run_id}, update {update}",
        _summary(exported),
        "## Evaluation",
        _evaluation(metrics, update, row["suites"]),
        "## Training",
        "\n".join(f"- {line}" for line in _training(exported, metrics)),
        "## Configuration",
        _configuration(row),
        "## This folder",
        exported.check,
        "`klsweep.json` holds the whole configuration; `klsweep eval` on this folder evaluates it as its run was. "
        "The licence is the base model's.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(base: str) -> str:
    content: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if base not in SHIPPED and not is_folder(base):  # a name that the hub knows
        content["base_model"] = base
    content["tags"] = ["klsweep", "reinforcement-learning"]
    return f"---\n{yaml.safe_dump(content, sort_keys=False)}---"


def _summary(exported: Exported) -> str:
    config, row = exported.config, exported.row
    axes, model = row["axes"], config["model"]
    kl = (
        f"KL estimator {axes['estimator']} in {axes['placement']}, β = {row['kl_coef']:g}"
        if row["kl_coef"]
        else "no KL"
    )
    revision = f" at revision {model['revision']}" if model["revision"] else ""
    return (
        f"`{model['path']}`{revision} (content {row['fields']['model.content']}) after {exported.update} of "
        f"{config['train']['updates']} updates of RL fine-tuning on the task `{axes['task']}` by {axes['algorithm']}, "
        f"{axes['sampling']}, with {kl}; seed {row['seed']}."
    )


def _evaluation(metrics: list[Row], update: int, roles: dict[str, str]) -> str:
    """A table of the base's and the exported weights' figures, as far as training has recorded them."""
    by_update = {row["update"]: row for row in metrics}
    base, ours = by_update.get(0, {}), by_update.get(update, {})
    if not any(key.startswith("eval/") for key in ours):
        return "Training did not evaluate these weights (`klsweep eval` does)."
    keys = sorted(key for key in ours if key.startswith("eval/"))
    rows = []
    for suite, role in sorted(roles.items(), key=lambda pair: pair[1]):
        names = [key.removeprefix(f"eval/{suite}/") for key in keys if key.startswith(f"eval/{suite}/")]
        for name in names:
            values = [source.get(f"eval/{suite}/{name}") for source in (base, ours)]
            rows.append([f"{suite} ({role})", name, *("–" if v is None else f"{v:.4f}" for v in values)])
    text = "`in`: the trained task; kl and entropy in nats per response, on fresh samples; kl to the base."
    return f"{markdown_grid(['suite', 'figure', 'base', 'this model'], rows)}\n\n{text}"


def _training(exported: Exported, metrics: list[Row]) -> list[str]:
    run, config, row, update, _ = exported
    times = [time for time in read_rows(run.timing) if time["update"] <= update]
    last = [entry for entry in metrics if 0 < entry["update"] <= update][-LAST_UPDATES:]
    means = {key: sum(e[key] for e in last) / len(last) for key in ("reward/mean", "kl/full_sequence")} if last else {}
    found = read_json(run.environment) or {}
    git = found.get("git") or {}
    dirty = " with uncommitted changes" if git.get("diff") or git.get("untracked") else ""
    packages = ", ".join(f"{name} {version}" for name, version in found.get("packages", {}).items())
    train, rollout = config["train"], config["rollout"]
    lines = [
        f"{train['prompts_per_update']} prompts × {config['algorithm']['group_size']} responses an update, "
        f"{train['minibatches']} optimiser steps each, AdamW, learning rate {train['lr']:g}",
        f"responses sampled by `{row['axes']['rollout']}` at temperature {rollout['temperature']:g}, "
        f"top-p {rollout['top_p']:g}, at most {config['task']['max_response_tokens']} tokens; prompts asked "
        f"{'as they are' if config['model']['template'] is None else 'in the chat template that is in this folder'}",
        f"the run's state: {run.status()['state']}, attempts: {run.attempts.latest()}; "
        f"{sum(time['seconds/total'] for time in times) / 3600:.3f} hours of updates on {found.get('device')}",
        f"klsweep, commit {git.get('commit', 'unknown')}{dirty}; science code {found.get('science_hash')}; {packages}",
    ]
    if means:
        lines.append(
            f"mean over the last {len(last)} updates: reward {means['reward/mean']:.4f}, "
            f"KL {means['kl/full_sequence']:.4f} nats per response of the training batches"
        )
    return lines


def _configuration(row: Row) -> str:
    """Axes and scientific fields, as the plan lists them."""
    values = {**row["axes"], "kl.coef": row["kl_coef"], **row["fields"], "seed": row["seed"]}
    return markdown_grid(
        ["field", "value"], [[key, f"`{value}`"] for key, value in values.items() if value is not None]
    )
