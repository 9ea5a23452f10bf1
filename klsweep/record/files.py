"""Plain files: whole ones replaced atomically, logs appended a line at a time, a torn last line skipped by readers."""

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]
TORN = "\x18"  # ASCII's "cancel": what precedes it in its line is not to count


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically: readers see the old content or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            flush(stream)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def flush(stream: IO[str]) -> None:
    """Bring what was written to the disk: a name must not survive a crash that its content does not."""
    stream.flush()
    os.fsync(stream.fileno())


def read_json(path: Path) -> Any:
    """Content of a JSON file, None if there is none."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None


def create_json(path: Path, content: Any) -> bool:
    """Create a JSON file, whole at once; False if it exists already: of two who try, one succeeds."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.") as stream:
        stream.write(json.dumps(content, indent=1) + "\n")
        flush(stream)
        os.chmod(stream.name, 0o644)
        try:
            os.link(stream.name, path)
        except FileExistsError:  # a network file system may say so of our own request that it has carried out
            return os.fstat(stream.fileno()).st_nlink == 2
    return True


def create_folder(folder: Path, name: str, content: Any) -> bool:
    """Create `folder` with one JSON file in it, at once; False if it exists: of two who try, one succeeds.

    A folder cannot be renamed onto one that is not empty, so the rename is both the test and the creation.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        os.chmod(temporary, 0o755)
        write_json(temporary / name, content)
        os.rename(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise
        return read_json(folder / name) == content  # a network file system may fail a request that it has carried out
    return True


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size


def make_readable(folder: Path) -> None:
    """Let a group read a finished folder: temporary folders, and safetensors' files, are made for their owner alone."""
    for path in (folder, *folder.rglob("*")):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows in one write, a torn last line being marked as such.

    Numbers that are not finite are written as null: JSON has no other way.
    """
    text = rows_text(rows)
    append_text(path, f"{TORN}\n{text}" if text and _is_torn(path) else text)


def _is_torn(path: Path) -> bool:
    """True if the last line has no end: its writer was killed."""
    try:
        with path.open("rb") as stream:
            return stream.seek(0, os.SEEK_END) > 0 and stream.seek(-1, os.SEEK_END) >= 0 and stream.read() != b"\n"
    except FileNotFoundError:
        return False


def rows_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps({k: finite(v) for k, v in row.items()}) + "\n" for row in rows)


def append_text(path: Path, text: str) -> None:
    """Append in one system call, which the kernel does not interleave with others' on a local disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        append_to(descriptor, text)
    finally:
        os.close(descriptor)


def append_to(descriptor: int, text: str) -> None:
    """Append to an open file. OSError, and nothing appended, if not everything could be written (a full disk)."""
    data = text.encode()
    written = os.write(descriptor, data)
    if written < len(data):
        end = os.lseek(descriptor, 0, os.SEEK_CUR)
        if os.fstat(descriptor).st_size == end:  # nobody has appended since
            os.ftruncate(descriptor, end - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def finite(value: Any) -> Any:
    """A value as a record holds it: a number that is not finite is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a JSON-lines file; a missing file has none, a torn line is skipped.

    ValueError for a broken line that is neither the last nor marked: that is damage, not an interrupted write.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except FileNotFoundError:
        return
    for number, line in enumerate(lines, 1):
        if not line or line.endswith(TORN):
            continue
        try:
            yield json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise ValueError(f"{path}, line {number} is not JSON: {line[:60]!r}") from error


def last_row(path: Path) -> Row | None:
    """The last whole row, without reading the rows before it; None if there is none."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            for length in (4096, 65536, size):
                stream.seek(max(0, size - length))
                lines = stream.read().split(b"\n")
                whole = [line for line in lines[(0 if length >= size else 1) : -1] if line]
                if whole:
                    return json.loads(whole[-1])
    except FileNotFoundError:
        pass
    return None


def truncate_rows(path: Path, after_update: int) -> None:
    """Drop rows of later updates than `after_update`, and a torn last line: a resumed run writes them again.

    The file is a new one in any case: whoever still has the old one open writes into nowhere.
    """
    write_text(path, rows_text(row for row in read_rows(path) if row["update"] <= after_update))
