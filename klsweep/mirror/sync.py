"""Filling W&B from the records of sweeps: each run once, and again what it has got since."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from klsweep.errors import BadInput
from klsweep.mirror.account import Account, Refused
from klsweep.mirror.content import Content, Differs, Held, contents, is_unsettled, is_whole
from klsweep.mirror.send import send
from klsweep.record.files import Row
from klsweep.record.folder import SweepFolder
from klsweep.tracking import wandb_id

SENDERS = 4  # runs at once
LAG_SECONDS = 20.0  # that W&B may need to count what a sync sent which was killed just before
NOTHING = "nothing recorded"
INCOMPLETE = "incomplete"  # W&B lacks something that is recorded
OUTCOMES = ("sent", "unchanged", NOTHING, INCOMPLETE)

Statuses = Mapping[str, Row]
Read = Callable[[], Content]
Told = Callable[["Synced"], None]


@dataclass(frozen=True)
class Synced:
    """What became of a run: one of OUTCOMES. `rows` of it are to be at W&B, `sent` went there now; `detail` says why
    some are not there.
    """

    run_id: str
    wandb_id: str
    state: str
    outcome: str
    rows: int = 0
    sent: int = 0
    detail: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Mirror:
    """Sweeps, and the account that is to hold them. It remembers what is whole there until the record changes.

    `patience`: seconds that W&B may take to count what it was sent.
    """

    account: Account
    sweeps: Sequence[SweepFolder]
    patience: float
    _whole: dict[str, tuple[Any, Synced]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = Counter(wandb_id(sweep.run(row["run_id"])) for sweep in self.sweeps for row in sweep.plan())
        if twice := [name for name, count in ids.items() if count > 1]:
            raise BadInput(f"{twice[0]}: the W&B id of runs of two of these sweeps, whose folders have the same name")

    def sync(self, states: Mapping[SweepFolder, Statuses], told: Told) -> list[Synced]:
        """Send what W&B lacks of every run, whose statuses are given by sweep and run id.

        `told` each outcome as it comes, before W&B is asked what it has counted. NoService if it cannot be reached.
        """
        unread: dict[str, tuple[Read, Synced]] = {}
        stamps, settled = {}, list[Synced]()
        for sweep in self.sweeps:
            begun = contents(sweep, states[sweep])
            for run_id, status in states[sweep].items():
                name = wandb_id(sweep.run(run_id))
                outcome = Synced(run_id, name, status["state"], NOTHING)
                stamps[name] = _stamp(sweep, run_id, status)
                known, whole = self._whole.get(name, (None, outcome))
                if run_id in begun and (known is None or known != stamps[name]):
                    unread[name] = begun[run_id], outcome
                    continue
                settled.append(whole)
                told(whole)
        done = self._send_all(unread, told)
        for outcome in done:
            if outcome.outcome != INCOMPLETE:
                self._whole[outcome.wandb_id] = stamps[outcome.wandb_id], replace(outcome, outcome="unchanged", sent=0)
        return [*settled, *done]

    def _send_all(self, unread: Mapping[str, tuple[Read, Synced]], told: Told) -> list[Synced]:
        held = self.account.held(list(unread))
        sent: dict[str, Content] = {}

        def work(name: str) -> Synced:
            read, outcome = unread[name]
            try:
                content = read()
                outcome = replace(outcome, rows=len(content.rows), detail=_note(content))
                there = self._counted(content, held.get(name))
                if is_whole(content, there):
                    return replace(outcome, outcome="unchanged")
                rows = send(self.account, content, there)
                sent[name] = content
                return replace(outcome, outcome="sent", sent=rows)
            except Differs as error:
                detail = f"{error}; W&B takes no step back: --project sends the run to another project, from its start"
            except (Refused, TimeoutError, ValueError) as error:  # ValueError: a record that is no JSON, and where
                detail = str(error)
            except (KeyError, TypeError) as error:
                detail = f"a row of its record is damaged ({type(error).__name__}: {error})"
            return replace(outcome, outcome=INCOMPLETE, detail=detail)

        pool, done = ThreadPoolExecutor(SENDERS), dict[str, Synced]()
        try:
            for future in as_completed([pool.submit(work, name) for name in unread]):
                outcome = future.result()
                done[outcome.wandb_id] = outcome
                told(outcome)
        finally:
            pool.shutdown(cancel_futures=True)
        for name, lacking in self._uncounted(sent):
            done[name] = replace(done[name], outcome=INCOMPLETE, detail=lacking)
        return [done[name] for name in unread]

    def _counted(self, content: Content, held: Held | None) -> Held | None:
        """What W&B holds of a run, once its count of rows, which may lag, has come up with them."""
        deadline = time.monotonic() + min(self.patience, LAG_SECONDS)
        while held is not None and is_unsettled(content, held) and time.monotonic() < deadline:
            time.sleep(1.0)
            held = self.account.held([content.wandb_id]).get(content.wandb_id)
        return held

    def _uncounted(self, sent: Mapping[str, Content]) -> Iterator[tuple[str, str]]:
        """Runs of which W&B, asked again, does not hold what it was sent, and what is wrong with them."""
        deadline, pause, open_ = time.monotonic() + self.patience, 0.2, dict(sent)
        while open_:
            held = self.account.held(list(open_))
            lacking = {name: text for name, content in open_.items() if (text := _lacks(content, held.get(name)))}
            if lacking and time.monotonic() < deadline:
                time.sleep(pause)
                pause = min(2 * pause, 5.0)
                open_ = {name: open_[name] for name in lacking}
                continue
            yield from lacking.items()
            return


def _lacks(content: Content, held: Held | None) -> str | None:
    """What W&B lacks of a run, None if it holds all."""
    try:
        if is_whole(content, held):
            return None
    except Differs as error:
        return str(error)
    if held is None:
        return "W&B does not know the run"
    if held.lines < len(content.rows):
        return f"W&B holds {held.lines} of {len(content.rows)} rows"
    return "W&B has another state, name, configuration or tag than was sent"


def _note(content: Content) -> str | None:
    return f"{content.withheld} rows wait for the next checkpoint" if content.withheld else None


def _stamp(sweep: SweepFolder, run_id: str, status: Row) -> Any:
    """Changes when what is to be sent of a run does; None, which nothing equals, before it has begun."""
    try:
        file = sweep.run(run_id).metrics.stat()
    except FileNotFoundError:
        return None
    planned = sweep.plan_file.stat().st_mtime_ns  # a wider plan tells cells apart by other words
    return planned, file.st_mtime_ns, file.st_size, status["state"], status["attempt"], status.get("cause")
