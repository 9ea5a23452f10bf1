"""One run, sent through the W&B client: the rows that are missing there, and what it says of the run beside them."""

from klsweep.mirror.account import Account, Refused, answers
from klsweep.mirror.content import Content, Held, missing_rows, tags

INIT_SECONDS = 90.0
FINISH_SECONDS = 600.0  # for what is left to upload at the end of a run
RETRIES = 8  # of a request, waiting longer each time: a minute or two in all


def send(account: Account, content: Content, held: Held | None) -> int:
    """Make W&B hold what is recorded of a run; the number of rows sent. Differs, Refused or NoService if it cannot.

    A run that is at work stays open there. The client sends a row at the line it has in the history, so a row that is
    sent twice, because W&B had not counted it yet, lands on itself.
    """
    rows = missing_rows(content, held)
    with answers(account.url):
        run = _open(account, content, held)
    code = 1
    try:
        if rows and run.starting_step > rows[0]["update"]:
            raise Refused(
                f"W&B goes on at step {run.starting_step}, not {rows[0]['update']}: does another process send?"
            )
        with answers(account.url):
            for row in rows:
                run.log({key: value for key, value in row.items() if key != "update"}, step=row["update"])
            run.summary.update(content.summary)
        code = 0 if content.finished or content.at_work else 1
    finally:
        with answers(account.url):
            run.finish(exit_code=code)
    return len(rows)


def _open(account: Account, content: Content, held: Held | None):
    """Begin or resume the W&B run, without anything of the machine that sends: the run was elsewhere."""
    import wandb

    return wandb.init(
        mode="online",
        entity=account.entity,
        project=account.project,
        id=content.wandb_id,
        name=content.name,
        group=content.group,
        job_type=content.job_type,
        tags=tags(content, held),
        config=content.config,
        config_exclude_keys=[],
        config_include_keys=[],
        allow_val_change=True,
        resume="allow",
        reinit="create_new",  # several at once
        dir=str(account.scratch),
        settings=wandb.Settings(
            silent=True,
            console="off",
            host=content.host,
            program="klsweep sync",
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=False,
            x_update_finish_state=not content.at_work,
            x_graphql_retry_max=RETRIES,
            x_file_stream_retry_max=RETRIES,
            x_file_transfer_retry_max=RETRIES,
        ),
    )
