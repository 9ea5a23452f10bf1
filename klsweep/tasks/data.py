"""Tasks over data: rows become items, and training and evaluation prompts are kept apart."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice

from pydantic import PositiveInt

from klsweep.component import component
from klsweep.errors import BadInput
from klsweep.tasks.base import Item
from klsweep.tasks.source import Row, Source
from klsweep.tasks.template import render

MAX_RESPONSE = 100_000  # characters at the end of a response in which its answer is looked for


@component
class DataTask:
    """What tasks over data have in common.

    Evaluation prompts are those of `eval_source`; without one, the first `eval_prompts` of `source`. Repetitions stay:
    a benchmark has the questions it has. Training prompts are the other prompts of `source` (null: there is nothing to
    train on), in the order of the data, each once; a prompt that is evaluated is never trained on. `train_prompts` and
    `eval_prompts` cut either set (null: all). `template` makes a prompt of a row's columns (Jinja).
    """

    source: Source | None
    eval_source: Source | None
    train_prompts: PositiveInt | None
    eval_prompts: PositiveInt | None
    template: str
    max_response_tokens: PositiveInt

    def __post_init__(self) -> None:
        if self.eval_source is None and (self.source is None or self.eval_prompts is None):
            raise BadInput("eval_source=null: needs a source and eval_prompts, how many of its prompts to hold out")

    @property
    def evaluated(self) -> Source:
        """Where evaluation prompts come from."""
        source = self.eval_source or self.source
        assert source is not None  # see __post_init__
        return source

    def train_items(self) -> Sequence[Item]:
        """The prompts that training draws from."""
        return _split(self)[0]

    def eval_items(self) -> Sequence[Item]:
        """The held-out prompts."""
        return _split(self)[1]

    def answer_of(self, row: Row, source: Source) -> str:
        """The gold answer of a row, as `grade` wants it."""
        return str(row[source.answer])

    def items_of(self, source: Source) -> Iterator[tuple[Item, Row]]:
        """The items of a source's rows. BadInput, naming the source, for one that the template does not fit."""
        for row in source.rows():
            try:
                prompt = render(self.template, row)
            except BadInput as error:
                raise BadInput(f"source path={source.path!r}: {error}") from error
            yield Item(prompt, self.answer_of(row, source)), row


@lru_cache(maxsize=64)
def _split(task: DataTask) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Training and evaluation items. BadInput if one that is asked for is empty."""
    held_out = tuple(item for item, _ in islice(task.items_of(task.evaluated), task.eval_prompts))
    if not held_out:
        raise BadInput(f"source path={task.evaluated.path!r}: no rows to evaluate on")
    if task.source is None:
        return (), held_out
    train = tuple(islice(_new(task.items_of(task.source), {item.prompt for item in held_out}), task.train_prompts))
    if len(train) < (task.train_prompts or 1):
        raise BadInput(f"train_prompts={task.train_prompts}: the source has only {len(train)} besides those evaluated")
    return train, held_out


def _new(items: Iterable[tuple[Item, Row]], seen: set[str]) -> Iterator[Item]:
    """The items whose prompts have not been seen, each prompt once."""
    for item, _ in items:
        if item.prompt not in seen:
            seen.add(item.prompt)
            yield item
