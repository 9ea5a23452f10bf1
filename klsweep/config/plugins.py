"""Packages of the user's, allow-listed by `plugins=[mylab.rl]`: found, imported, their conf/ and their code's hash.

A plugin is a package (or a single module) that this process can import: from the current folder, PYTHONPATH or what is
installed. Its code is what stands in its top-level package, `mylab` here, for `mylab.rl` may import the rest of it.
"""

import hashlib
import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from klsweep.errors import BadInput


def is_within(target: str, packages: Sequence[str]) -> bool:
    """True if an import path is one of these packages or something below it."""
    return any(target == package or target.startswith(f"{package}.") for package in packages)


def import_plugin(name: str, asked: str | None = None) -> ModuleType:
    """A plugin, or a module of one, imported; `asked` is what names it, for errors.

    BadInput in one line if it is missing, or its own code fails.
    """
    asked = asked or f"plugins=[{name}]"
    if not all(part.isidentifier() for part in name.split(".")):
        raise BadInput(f"{asked}: {name!r} is not the import path of a package (such as mylab or mylab.rl)")
    _reach_current_folder()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not is_within(name, [error.name]):  # missing is what the plugin imports
            raise BadInput(f"{asked}: {_failure(error)}") from error
        places = ("on PYTHONPATH",) if sys.flags.safe_path else (f"in {os.getcwd()}", "on PYTHONPATH")
        raise BadInput(f"{asked}: no package {error.name!r} {', '.join(places)} or installed") from error
    except Exception as error:  # whatever a user's code raises when it is imported
        raise BadInput(f"{asked}: {_failure(error)}") from error


def _reach_current_folder() -> None:
    """Let `import` find the current folder last, unless Python was told not to (PYTHONSAFEPATH, as jobs are)."""
    folder = os.getcwd()
    if not sys.flags.safe_path and not {"", folder} & set(sys.path):
        sys.path.append(folder)
        importlib.invalidate_caches()


def _failure(error: Exception) -> str:
    """What went wrong in a user's code, and on which line of it."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"


def conf_folder(name: str) -> Path | None:
    """The plugin's `conf/`, None if it has none. BadInput if it cannot be imported."""
    folders = [Path(folder) / "conf" for folder in getattr(import_plugin(name), "__path__", [])]
    return next((folder.resolve() for folder in folders if folder.is_dir()), None)


def code_files(name: str) -> dict[str, Path]:
    """Every file of the plugin's top-level package, or the one of a module, by its path as an import sees it."""
    import_plugin(name)
    top = sys.modules[name.split(".")[0]]
    if not hasattr(top, "__path__"):
        assert top.__file__ is not None
        return {Path(top.__file__).name: Path(top.__file__).resolve()}
    files = {}
    for folder in reversed(list(top.__path__)):  # a namespace package may have several: the first holds, as in imports
        files |= {f"{top.__name__}/{file.relative_to(folder)}": file for file in walk(Path(folder))}
    return files


def walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, through links too (klsweep's conf/ is one), less caches and hidden folders."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name != "__pycache__" and not path.name.startswith("."):
            yield from walk(path)
        elif path.is_file():
            yield path


def is_installed(file: Path) -> bool:
    """True for a file that pip installed, or Python's own: jobs find it where it is."""
    places = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")]
    return any(file.resolve().is_relative_to(place) for place in places)


def plugin_hash(plugins: Sequence[str]) -> str | None:
    """Hash of the plugins' Python files, None without plugins: what `science_hash` is for klsweep's own."""
    return _hash(tuple(sorted(plugins))) if plugins else None


@lru_cache(maxsize=16)
def _hash(plugins: tuple[str, ...]) -> str:
    files: dict[str, Path] = {}
    for plugin in plugins:
        files |= code_files(plugin)
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        if name.endswith(".py"):
            digest.update(f"{name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
