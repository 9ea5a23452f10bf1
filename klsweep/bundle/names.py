"""Who made the records: users, hosts, folders and accounts, each with what stands for it in a bundle without names.

Names are taken from the fields that hold them and from whoever bundles, then looked for in every text. The same name
becomes the same pseudonym everywhere: `host-1` is another machine than `host-2`.
"""

import getpass
import html
import json
import pwd
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from klsweep.config.plugins import walk
from klsweep.provenance import PACKAGE, SOURCE_RECORD
from klsweep.record.files import rows_text

# kinds of names, by the last words of the key that holds one
FIELDS = {
    "host": "host",
    "node": "host",
    "user": "user",
    "email": "mail",
    "commit": "commit",
    "cluster": "cluster",
    "job.id": "job",
    "wandb.entity": "entity",
    "wandb.project": "project",
    "launcher.partition": "partition",
    "launcher.account": "account",
    "launcher.qos": "qos",
    "launcher.constraint": "constraint",
    "launcher.profile": "profile",
}
# what may hold anything, and nothing depends on
BLANKED = ("diff", "untracked", "space", "platform", "launcher.setup", "launcher.sbatch", "launcher.python")
BLANK = "stripped"
SYSTEM = ("bin", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "usr")  # folders that every machine has
PATH = re.compile(r"(?<![\w.~/:@-])/(?!/)[^\s/'\",;:()\[\]{}<>|=*?&]+(?:/[^\s/'\",;:()\[\]{}<>|=*?&]+)+")
HOME = re.compile(r"/(?:home|Users)/([^\s/'\",;:()\[\]{}<>|=*?&]+)")
MAIL = re.compile(r"[\w.+-]+@(?:[\w-]+\.)+(?:[a-z]{2}|com|org|net|edu|gov|info|dev|cloud)\b(?![(.\w])")
REMOTE = re.compile(r"[:/]([^/:@]+)/[^/]+$")  # whose repository a URL is of
JOB = re.compile(r"\bjob (\d+(?:_\d+)?)\b")
LETTER = re.compile(r"[^\W\d_]")
WORD = re.compile(r"[a-z0-9]+")
HOMES = ("/home", "/Users")
PLAN = "plan.jsonl"
CODE = re.compile(r"(?:code|records/.+/code/[0-9a-f]{12})/")
LEAST = 8  # bytes of a name that is looked for in files that are no text: shorter ones are there by chance


Key = tuple[str, ...]


class Names:
    """The names that are known, and what stands for each.

    `ordinary` are those that are also words of klsweep's own, as of a user `max`: they are replaced where a field or a
    path says that they are names, and stay in texts, which would not be the same otherwise.
    """

    def __init__(self) -> None:
        self._known: dict[str, dict[str, str]] = {}
        self._variants: dict[str, str] = {}  # as texts may have a name, in small letters, the longest first
        self._words = _vocabulary()
        self.ordinary: set[str] = set()

    def add(self, kind: str, name: str) -> str:
        """Know a name; its pseudonym."""
        known = self._known.setdefault(kind, {})
        if name not in known:
            whole = known.get(name.split(".")[0]) if kind == "host" else None  # node7 is node7.cluster
            known[name] = whole or f"{'/' * (kind == 'path')}{kind}-{len(set(known.values())) + 1}"
            self._look_for(name, known[name])
            if kind == "host" and "." in name:
                self._look_for(name.split(".")[0], known.setdefault(name.split(".")[0], known[name]))
        return known[name]

    def is_ordinary(self, name: str) -> bool:
        """True for a word that klsweep uses, and for a number."""
        return not LETTER.search(name) or name.lower() in self._words

    def _look_for(self, name: str, pseudonym: str) -> None:
        if self.is_ordinary(name):
            self.ordinary |= {name} if LETTER.search(name) else set()
            return
        for spelt in (name, name.lower(), name.upper(), name.title()):  # an escaped Ñ is not an escaped ñ
            for variant in (spelt, json.dumps(spelt)[1:-1], quote(spelt), html.escape(spelt)):
                self._variants[variant.lower()] = pseudonym
        self._variants = dict(sorted(self._variants.items(), key=lambda item: -len(item[0])))

    def hidden(self, text: str) -> str:
        """A text with pseudonyms."""
        lowered = text.lower()
        there = tuple(variant for variant in self._variants if variant in lowered)
        if not there:
            return text
        return _pattern(there).sub(lambda found: self._variants.get(found[0].lower(), BLANK), text)

    def hidden_in(self, name: str, content: bytes) -> bytes:
        """The content of a file of the bundle with pseudonyms. What is no text is left as it is."""
        documents = _documents(name, content)
        if documents is not None:
            found = [self._hidden_value(document, ()) for document in documents]
            return content if found == documents else _dumped(name, found)
        try:
            return self.hidden(content.decode()).encode()
        except UnicodeDecodeError:
            return content

    def _hidden_value(self, value: Any, key: Key) -> Any:
        if _is_blanked(key):
            return BLANK if value else value
        if isinstance(value, dict):
            return {self.hidden(str(k)): self._hidden_value(v, (*key, str(k))) for k, v in value.items()}
        if isinstance(value, list):
            return [self._hidden_value(v, key) for v in value]
        if not isinstance(value, str) or not value:
            return value
        if kind := _kind(key):
            return self.add(kind, value)
        return self._hidden_override(value) if key[-1:] == ("overrides",) else self._hidden_text(value)

    def _hidden_override(self, text: str) -> str:
        """`launcher.account=mine` says of its value what it is, as a field does."""
        name, sign, value = text.partition("=")
        key = tuple(name.lstrip("+~").split("."))
        if _is_blanked(key):
            return f"{name}={BLANK}"
        if kind := _kind(key):
            return name + sign + ",".join(self.add(kind, one) for one in value.split(","))
        return self._hidden_text(text)

    def _hidden_text(self, text: str) -> str:
        return JOB.sub(lambda found: f"job {self.add('job', found[1])}", self.hidden(text))

    def gather(self, name: str, content: bytes) -> None:
        """Know the names in a file of the bundle: in its fields, and the paths and addresses in its texts."""
        if is_code(name):
            self._gather_text(content.decode(errors="replace"), of_code=True)
        for key, text in _texts(_documents(name, content) or []):
            if kind := _kind(key):
                self.add(kind, text)
            elif not _is_blanked(key):
                self._gather_text(text, of_code=False)

    def _gather_text(self, text: str, of_code: bool) -> None:
        for found in MAIL.finditer(text):
            self.add("mail", found[0])
        for found in HOME.finditer(text):
            self.add("path", found[0])
            self.add("user", found[1])
        for found in PATH.finditer("" if of_code else text):  # those in code are mostly of systems
            folder = found[0].rpartition("/")[0]
            if folder.split("/")[1] not in SYSTEM and folder not in HOMES:
                self.add("path", folder)

    def left_in(self, name: str, content: bytes) -> str | None:
        """What a file of the bundle still says, None if it is clean."""
        if self.hidden(name) != name:
            return "a name in its own name"
        for key, value in _texts(_documents(name, content) or []):
            kind = _kind(key)
            if kind and not re.fullmatch(rf"{kind}-\d+", value):
                return f"{'.'.join(key)} = {value!r}"
            if found := HOME.search(value) or MAIL.search(value):
                return repr(found[0])
        try:
            text = content.decode()
        except UnicodeDecodeError:
            lowered = content.lower()
            there = [v for v in self._variants if len(v) >= LEAST and v.encode() in lowered]
            return repr(there[0]) if there else None
        there = tuple(variant for variant in self._variants if variant in text.lower())
        found = _pattern(there).search(text) if there else None
        return repr(found[0]) if found else None


def known_here(sweeps: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Names of whoever bundles these sweep folders and of this machine, each with its kind."""
    folders = [Path.home(), PACKAGE.parent, Path.cwd(), Path(sys.prefix)]
    for sweep in sweeps:
        folders += [sweep.resolve().parent, sweep.absolute().parent]
    for folder in folders:
        if folder == folders[0] or (len(folder.parts) > 2 and folder.parts[1] not in SYSTEM):
            yield "path", str(folder)
    owners = {folder.stat().st_uid for folder in sweeps}
    for entry in pwd.getpwall():
        if entry.pw_uid in owners or entry.pw_name == getpass.getuser():
            yield "user", entry.pw_name
            if full := entry.pw_gecos.split(",")[0]:
                yield "name", full
    yield from (("host", host) for host in sorted({socket.getfqdn(), socket.gethostname()}))
    for key, value in _git_settings():
        yield {"user.email": "mail", "user.name": "name"}.get(key, "remote"), value
        if owner := REMOTE.search(value):
            yield "name", owner[1]


def _git_settings() -> Iterator[tuple[str, str]]:
    """Author and remotes of the checkout that klsweep runs from, as git has them."""
    wanted = r"^(user\.(name|email)|remote\..*\.url)$"
    command = ["git", "-C", str(PACKAGE.parent), "config", "--null", "--get-regexp", wanted]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:  # no git
        return
    for line in filter(None, found.split("\0")):
        key, _, value = line.partition("\n")
        yield key, value


def _kind(key: Key) -> str | None:
    return FIELDS.get(".".join(key[-2:])) or FIELDS.get(".".join(key[-1:]))


def _is_blanked(key: Key) -> bool:
    return ".".join(key[-2:]) in BLANKED or ".".join(key[-1:]) in BLANKED


def _texts(value: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """Every text of a document with its key, what is listed under the key of the list; keys are texts, too."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield (), str(name)
            yield from _texts(one, (*key, str(name)))
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one, key)
    elif isinstance(value, str) and value:
        yield key, value


def is_code(name: str) -> bool:
    """True for a file of code, of the bundle's own or of a copy that jobs ran."""
    return CODE.match(name) is not None and Path(name).name != SOURCE_RECORD


def has_fields(name: str) -> bool:
    """True for a file of the bundle whose keys say what is in it."""
    path = Path(name)
    return not is_code(name) and (path.suffix in (".json", ".yaml") or path.name == PLAN)


def _documents(name: str, content: bytes) -> list[Any] | None:
    """The rows of a file with fields, or all its content as one; None for others."""
    if not has_fields(name):
        return None
    try:
        if name.endswith(".yaml"):
            return [yaml.load(content, yaml.CSafeLoader)]
        return [json.loads(line) for line in (content.splitlines() if Path(name).name == PLAN else [content]) if line]
    except (ValueError, yaml.YAMLError):  # damaged, as plain text then
        return None


def _dumped(name: str, documents: Sequence[Any]) -> bytes:
    """As records are written."""
    if name.endswith(".yaml"):
        return yaml.dump(documents[0], Dumper=yaml.CSafeDumper, sort_keys=False, encoding="utf-8")
    if name.endswith(".jsonl"):
        return rows_text(documents).encode()
    return (json.dumps(documents[0], indent=1) + "\n").encode()


@lru_cache(maxsize=64)
def _pattern(variants: tuple[str, ...]) -> re.Pattern[str]:
    """Any of these: a path up to the end of one of its parts, another name unless it is part of a word."""
    paths = (rf"(?<![\w.~-]){re.escape(v)}(?![\w-])" for v in variants if v.startswith("/"))
    words = (rf"(?<![^\W_]){re.escape(v)}(?![^\W_])" for v in variants if not v.startswith("/"))
    return re.compile("|".join([*paths, *words]), re.IGNORECASE)


def _vocabulary() -> frozenset[str]:
    """The words of klsweep's own code and configuration."""
    texts = (file.read_text("utf-8").lower() for file in walk(PACKAGE) if file.suffix in (".py", ".yaml", ".js"))
    return frozenset(word for text in texts for word in WORD.findall(text))
