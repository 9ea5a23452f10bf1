"""The W&B account that runs are sent to: who one is there, and what a project holds."""

import contextlib
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from klsweep.errors import BadInput
from klsweep.mirror.content import Held
from klsweep.record.folder import SweepFolder
from klsweep.record.origin import is_external

ANSWER_SECONDS = 30  # for one question
RETRIES = 2  # of a question, after seconds
PAGE = 100  # runs asked for at once


class NoService(OSError):
    """W&B cannot be reached; in one line."""


class Refused(NoService):
    """W&B, or its client, does not do what it is asked; in one line."""


@dataclass(frozen=True)
class Account:
    """A project at W&B, and a folder for the client's own files, which no sweep is to hold."""

    entity: str
    project: str
    url: str  # of the service
    app_url: str  # of its pages
    scratch: Path
    api: Any = field(repr=False)

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.project}"

    @property
    def page(self) -> str:
        """Where a browser finds the project."""
        return f"{self.app_url.rstrip('/')}/{self.path}"

    def held(self, ids: Sequence[str]) -> dict[str, Held]:
        """What the project holds of these runs, by id; of those that it does not know, nothing."""
        found = {}
        with answers(self.url):
            self.api.flush()
            for start in range(0, len(ids), PAGE):
                filters = {"name": {"$in": list(ids[start : start + PAGE])}}  # W&B calls a run's id its name
                runs = self.api.runs(self.path, filters=filters, per_page=PAGE, lazy=False)
                found |= {run.id: _held(run) for run in _all(runs)}
        return found


def _all(runs: Any) -> Iterator[Any]:
    try:
        yield from runs
    except ValueError as error:  # the client's way of saying that there is no such project yet
        if "Could not find project" not in str(error):
            raise


def _held(run: Any) -> Held:
    summary = dict(run.summary)
    return Held(run.historyLineCount or 0, summary, run.config, frozenset(run.tags), run.name, run.state)


@contextlib.contextmanager
def opened(sweep: SweepFolder, project: str | None, entity: str | None) -> Iterator[Account]:
    """The account that a sweep's runs name in their configuration, or the one given.

    BadInput without an API key, and for an entity that is not the user's; NoService or Refused if W&B does not answer.
    """
    import wandb

    retries: dict[str, Any] = {"x_graphql_retry_max": RETRIES, "x_graphql_retry_wait_min_seconds": 1}
    wandb.setup(wandb.Settings(mode="online", silent=True, **retries))  # online, whatever WANDB_MODE says for training
    settings, client = settings_of(sweep), wandb.setup().settings
    project = checked_project(project or settings["project"])
    url = client.base_url
    with answers(url):
        if not wandb.login(prompt=False, verify=False):
            raise BadInput(f"no W&B API key for {url}: `wandb login` asks for it, or set WANDB_API_KEY")
        api = wandb.Api(timeout=ANSWER_SECONDS)
        choices = list(dict.fromkeys(name for name in (api.default_entity, *api.viewer.teams) if name))
    entity = entity or settings["entity"] or next(iter(choices), "none")
    if entity not in choices:
        raise BadInput(f"entity={entity!r}: not one that this W&B API key may write to (choices: {', '.join(choices)})")
    with tempfile.TemporaryDirectory(prefix="klsweep-wandb-", ignore_cleanup_errors=True) as scratch:
        yield Account(entity, project, url, client.app_url, Path(scratch), api)


def settings_of(sweep: SweepFolder) -> dict[str, Any]:
    """The `wandb` node of the first run of a sweep that has a configuration; external runs have none."""
    for row in sweep.plan():
        if is_external(row):
            return {"entity": None, "project": None}
        if (config := sweep.run(row["run_id"]).config).exists():
            return yaml.load(config.read_text(), Loader=yaml.CSafeLoader)["wandb"]
    raise BadInput(f"{sweep.path}: no run of it has begun")


def checked_project(project: str | None) -> str:
    """BadInput without one."""
    if project is None:
        raise BadInput("--project: missing, and external runs name no W&B project")
    return project


@contextlib.contextmanager
def answers(url: str) -> Iterator[None]:
    """Turn what the client raises into NoService or Refused."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except (wandb.Error, WandbApiFailedError, TimeoutError) as error:
        if reason := _unreachable(url):
            raise NoService(f"W&B at {url} cannot be reached: {reason}") from error
        raise Refused(f"W&B at {url}: {' '.join(str(error).split())}") from error


def _unreachable(url: str) -> str | None:
    """Why nothing answers at an address, None if something does."""
    try:
        urllib.request.urlopen(url, timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        return str(getattr(error, "reason", error))
    return None
