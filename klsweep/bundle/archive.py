"""A bundle as a .tar.gz, a .zip or a folder: written so that the same files give the same bytes, read with care.

Nothing of a bundle is trusted: names are checked before anything is written, only plain files are taken, and no more of
a file than the manifest says it has.
"""

import gzip
import hashlib
import os
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from klsweep.bundle.manifest import MANIFEST, Entry, Manifest, check_name, lacking, parsed
from klsweep.errors import BadInput

FORMS = (".tar.gz", ".zip")
TOP = "klsweep-bundle"  # the folder that an archive unpacks into
DAY_ONE = (1980, 1, 1, 0, 0, 0)  # the first that a zip file can tell
LARGEST_MANIFEST = 2**28
CHUNK = 2**20
LEVEL = 6
UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile, NotImplementedError)

OnStep = Callable[[int, int], None]


class Member(NamedTuple):
    """A plain file of a bundle."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def form_of(path: Path) -> str:
    """The suffix of an archive, "" for a folder. BadInput for a suffix that is neither's."""
    form = next((form for form in FORMS if path.name.endswith(form) and path.name != form), "")
    if not form and path.suffix:
        raise BadInput(f"{path}: unknown suffix {path.suffix!r} (choose from {', '.join(FORMS)}; a folder has none)")
    return form


def write_archive(root: Path, names: Sequence[str], out: Path, on_step: OnStep) -> None:
    """The files of these names below `root`, in this order, as an archive; `out` is replaced at once."""
    temporary = root.with_name("archive")
    write = _write_zip if form_of(out) == ".zip" else _write_tar
    write(root, names, temporary, on_step)
    os.replace(temporary, out)


def _write_tar(root: Path, names: Sequence[str], file: Path, on_step: OnStep) -> None:
    with (
        file.open("wb") as raw,
        gzip.GzipFile("", "wb", LEVEL, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for done, name in enumerate(names, 1):
            member = tarfile.TarInfo(f"{TOP}/{name}")  # nobody's, and of no time
            member.size = (root / name).stat().st_size
            with (root / name).open("rb") as stream:
                tar.addfile(member, stream)
            on_step(done, len(names))


def _write_zip(root: Path, names: Sequence[str], file: Path, on_step: OnStep) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for done, name in enumerate(names, 1):
            member = zipfile.ZipInfo(f"{TOP}/{name}", DAY_ONE)
            member.create_system, member.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            archive.writestr(member, (root / name).read_bytes(), zipfile.ZIP_DEFLATED, LEVEL)
            on_step(done, len(names))


@contextmanager
def unpacked(bundle: Path, into: Path | None, on_step: OnStep) -> Iterator[tuple[Path, Manifest]]:
    """A bundle's files in a folder, all checked, and its manifest. BadInput if one is changed, missing or besides.

    `into`: where they stay, else they are gone after the block; a bundle that is a folder is then used where it is.
    """
    if into is None and bundle.is_dir():
        yield bundle, _checked(bundle, None, on_step)
        return
    with tempfile.TemporaryDirectory(dir=into and into.parent, prefix=".klsweep-bundle.") as folder:
        root = Path(folder) / TOP
        root.mkdir()
        manifest = _checked(bundle, root, on_step)
        if into is not None:
            os.rename(root, into)
            root = into
        yield root, manifest


def _checked(bundle: Path, into: Path | None, on_step: OnStep) -> Manifest:
    try:
        with _members(bundle) as members:
            return _check(bundle, members, into, on_step)
    except UNREADABLE as error:
        raise BadInput(f"{bundle}: cannot be read, it is damaged or no bundle ({error})") from error


def _check(bundle: Path, members: Iterator[Member], into: Path | None, on_step: OnStep) -> Manifest:
    first = next(members, None)
    if first is None or first.name != MANIFEST or first.size > LARGEST_MANIFEST:
        raise BadInput(f"{bundle}: no bundle (one begins with {MANIFEST}; `klsweep bundle` makes one)")
    with first.open() as stream:
        text = stream.read(first.size)
    manifest = parsed(text, bundle)
    seen = dict[str, Entry]()
    for member in members:
        check_name(member.name, bundle)
        if member.name in seen:
            raise BadInput(f"{bundle}: {member.name} is there twice")
        wanted = manifest.files.get(member.name)
        fits = wanted is not None and wanted.bytes == member.size
        digest = _copy(member, into / member.name if into is not None else None) if fits else ""
        seen[member.name] = Entry(digest, member.size)
        on_step(len(seen), len(manifest.files))
    if problems := list(lacking(manifest, seen)):
        name, what = problems[0]
        more = f" (and {len(problems) - 1} other files are not as they were)" if problems[1:] else ""
        raise BadInput(f"{bundle}: {name} {what}{more}")
    if into is not None:
        (into / MANIFEST).write_bytes(text)
    return manifest


def _copy(member: Member, file: Path | None) -> str:
    """SHA-256 of a member, which is written to `file` on the way, if there is one."""
    digest, left = hashlib.sha256(), member.size
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as stream, open(file if file is not None else os.devnull, "wb") as target:
        while left and (chunk := stream.read(min(CHUNK, left))):
            digest.update(chunk)
            target.write(chunk)
            left -= len(chunk)
    return digest.hexdigest()


@contextmanager
def _members(bundle: Path) -> Iterator[Iterator[Member]]:
    """The files of a bundle in turn. BadInput for what is no plain file."""
    if bundle.is_dir():
        yield _of_folder(bundle)
    elif zipfile.is_zipfile(bundle):
        with zipfile.ZipFile(bundle) as archive:
            yield _of_zip(archive, bundle)
    else:
        with tarfile.open(bundle, "r:gz") as tar:
            yield _of_tar(tar, bundle)


def _of_folder(bundle: Path) -> Iterator[Member]:
    names = [os.path.relpath(os.path.join(at, file), bundle) for at, _, files in os.walk(bundle) for file in files]
    links = [os.path.join(at, name) for at, folders, _ in os.walk(bundle) for name in folders]
    for name in sorted(names, key=lambda name: (name != MANIFEST, name)):
        state = (bundle / name).lstat()
        _check_kind(stat.S_ISREG(state.st_mode), name, bundle)
        yield Member(name, state.st_size, lambda name=name: (bundle / name).open("rb"))
    for link in filter(os.path.islink, links):
        _check_kind(False, os.path.relpath(link, bundle), bundle)


def _of_zip(archive: zipfile.ZipFile, bundle: Path) -> Iterator[Member]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        _check_kind(not info.is_dir() and kind in (0, stat.S_IFREG), info.filename, bundle)
        yield Member(_below_top(info.filename), info.file_size, lambda info=info: archive.open(info))


def _of_tar(tar: tarfile.TarFile, bundle: Path) -> Iterator[Member]:
    for info in tar:
        _check_kind(info.isreg() and not info.issparse(), info.name, bundle)
        yield Member(_below_top(info.name), info.size, lambda info=info: _opened(tar, info))


def _opened(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(info)
    assert stream is not None  # it is a plain file
    return stream


def _below_top(name: str) -> str:
    return name.removeprefix(f"{TOP}/")


def _check_kind(is_plain: bool, name: str, bundle: Path) -> None:
    if not is_plain:
        raise BadInput(f"{bundle}: {name} is no plain file; nothing was unpacked")
