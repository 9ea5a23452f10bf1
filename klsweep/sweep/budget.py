"""How often a run may be tried before a person has to look. No torch."""

from dataclasses import dataclass

from klsweep.record.folder import Job, RunFolder

FIELDS = {"preempted": "max_preemptions", "timeout": "max_timeouts", "failed": "max_failures"}


@dataclass(frozen=True)
class Budget:
    """Attempts that may end so before a run counts as failed; a failure beyond the budget is not tried again."""

    max_preemptions: int
    max_timeouts: int
    max_failures: int
    max_without_progress: int

    def spent(self, folder: RunFolder) -> str | None:
        """Why the run may not be tried again, None if it may. `klsweep retry` begins every budget anew."""
        tries = folder.tries()
        ends = [attempt["state"] for attempt in tries]
        for state, field in FIELDS.items():
            if ends.count(state) > (allowed := getattr(self, field)):
                return f"given up: {ends.count(state)} attempts ended as {state} (launcher.{field}={allowed})"
        idle, start = self.max_without_progress, folder.checkpointed()
        if len(tries) >= idle and all(attempt.get("resumed_from", start) == start for attempt in tries[-idle:]):
            return f"given up: no progress beyond update {start} in {idle} attempts (launcher.max_without_progress)"
        return None

    def give_up(self, folder: RunFolder, job: Job) -> bool:
        """True if the run may not be tried again; it is then failed on record, with the reason or its own cause."""
        reason = self.spent(folder)
        if reason is not None and folder.status()["state"] != "failed" and (attempt := folder.claim(job)):
            attempt.finish("failed", reason)
        return reason is not None
