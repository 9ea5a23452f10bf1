"""Saving a report at W&B: a new one, or the one that an earlier call made."""

from dataclasses import dataclass
from typing import Any

from klsweep.errors import BadInput
from klsweep.mirror.account import Account, answers


@dataclass(frozen=True)
class Saved:
    """A report at W&B."""

    url: str
    id: str
    created: bool


def save_report(account: Account, report: Any, marker: str) -> Saved:
    """Save a report, in the place of the one whose description begins with `marker`, if the project has one.

    Comments on that one stay, its blocks go. BadInput if the project is not there, NoService or Refused if W&B does
    not answer.
    """
    from wandb_workspaces.reports.v2.interface import Report

    with answers(account.url):
        known = next((view.url for view in _reports(account) if (view.description or "").startswith(marker)), None)
        if known is not None:
            there: Any = Report.from_url(known)
            there.title, there.description, there.width = report.title, report.description, report.width
            there.blocks = report.blocks
            report = there
        report.save()
        return Saved(report.url, report.id, created=known is None)


def _reports(account: Account) -> list[Any]:
    try:
        return list(account.api.reports(account.path))
    except ValueError as error:  # the client's way of saying that there is no such project yet
        raise BadInput(f"{account.path}: no such W&B project yet (klsweep sync fills it)") from error
