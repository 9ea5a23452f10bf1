"""Where a task's rows come from: a file, or a hub dataset that `klsweep fetch` has brought to this machine.

Reading never downloads. A fetched split lies as one Parquet file in ``<HF_HOME>/klsweep/<owner>--<name>/<commit>/``, so
that plans and jobs read the same bytes, offline, without the `datasets` library.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from klsweep.component import component
from klsweep.errors import BadInput

Row = dict[str, Any]

FORMATS = (".jsonl", ".csv", ".parquet")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@component
class Source:
    """Rows of data. `path`: a .jsonl, .csv or .parquet file, or a hub name; `answer`: the column of gold answers.

    `where`, as ``column=value``, keeps the rows with that value. `subsets`, `split` and `revision` are of hub datasets
    (no subsets: the dataset's default one); a file is taken whole.
    """

    path: str
    subsets: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
    split: str
    revision: str | None
    where: str | None
    answer: str

    def __post_init__(self) -> None:
        if not self.is_file and not HUB_NAME.fullmatch(self.path):
            raise ValueError(
                f"path={self.path!r}: expected a file ending in {', '.join(FORMATS)}, or a hub dataset 'owner/name'"
            )
        if self.where is not None and not all(self.where.partition("=")):
            raise ValueError(f"where={self.where!r}: expected column=value")

    @property
    def is_file(self) -> bool:
        """True for a local file, False for the name of a hub dataset."""
        return Path(self.path).suffix in FORMATS

    def commit(self) -> str | None:
        """The commit that was fetched for `revision`, None for a file. BadInput if none was."""
        if self.is_file:
            return None
        fetched = hub_folder(self.path)
        reference = fetched / "refs" / (self.revision or "main")
        if reference.is_file():
            return reference.read_text().strip()
        if self.revision is not None and (fetched / self.revision).is_dir():
            return self.revision
        raise BadInput(
            f"source path={self.path!r} (revision {self.revision or 'main'}): not on this machine, and reading does "
            "not download (klsweep fetch, with the same overrides, does; or give a local file)"
        )

    def files(self) -> list[Path]:
        """The files to read, in order. BadInput if one is missing."""
        commit = self.commit()
        if commit is None:
            files = [Path(self.path).expanduser()]
        else:
            files = [split_file(self.path, commit, subset, self.split) for subset in self.subsets or (None,)]
        for file in files:
            if not file.is_file():
                hint = "no such file" if commit is None else f"{file.name} is not on this machine (klsweep fetch)"
                raise BadInput(f"source path={self.path!r}: {hint}")
        return files

    def rows(self) -> Iterator[Row]:
        """The rows, in the order of the files. BadInput for what cannot be read, has no such columns or no answer."""
        column, _, value = (self.where or "").partition("=")
        for file in self.files():
            for number, row in enumerate(read_file(file), 1):
                for name in (self.answer, *([column] if column else [])):
                    if name not in row:
                        raise BadInput(
                            f"source path={self.path!r}: no column {name!r} (columns: {', '.join(map(str, row))})"
                        )
                if column and str(row[column]) != value:
                    continue
                if row[self.answer] is None:  # which as text would be the answer "None"
                    raise BadInput(f"source path={str(file)!r}: row {number} has no {self.answer!r}, it is null")
                yield row


def hub_folder(name: str) -> Path:
    """Where the fetched commits of a hub dataset lie."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "klsweep" / name.replace("/", "--")


def split_file(name: str, commit: str, subset: str | None, split: str) -> Path:
    """The file of one fetched split."""
    return hub_folder(name) / commit / f"{subset or 'default'}.{split}.parquet"


def read_file(file: Path) -> Iterator[Row]:
    """The rows of a .jsonl, .csv or .parquet file. BadInput for what cannot be read."""
    try:
        yield from READERS[file.suffix](file)
    except UnicodeDecodeError as error:
        raise BadInput(f"source path={str(file)!r}: not UTF-8 ({error})") from error
    except csv.Error as error:
        raise BadInput(f"source path={str(file)!r}: {error}") from error


def _jsonl(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BadInput(f"source path={str(file)!r}: line {number} is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise BadInput(f"source path={str(file)!r}: line {number} is no JSON object")
            yield row


def _csv(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        yield from csv.DictReader(stream)


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise BadInput(f"source path={str(file)!r}: not a Parquet file ({error})") from error


READERS = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
