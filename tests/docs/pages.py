"""What the documentation holds: fenced blocks, the commands in them, commands in running text, links."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SHELL = ("", "sh", "bash", "console")


class Block(NamedTuple):
    """A fenced block; `line` is that of its first line of text."""

    page: str
    line: int
    language: str
    text: str


class Command(NamedTuple):
    """A command of a block, its lines joined and its comment gone; `output` is what the page shows below it."""

    page: str
    line: int
    text: str
    output: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every page with commands in it that somebody will copy."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found += sorted((ROOT / "examples").rglob("README.md"))
    return [str(path.relative_to(ROOT)) for path in found]


def blocks(page: str, text: str | None = None) -> Iterator[Block]:
    """The fenced blocks of a page (or of `text` in its place)."""
    text = (ROOT / page).read_text() if text is None else text
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        yield Block(page, text[: match.start(2)].count("\n") + 1, match[1], match[2])


def commands(block: Block) -> list[Command]:
    """The commands of a shell block. With a `$ ` anywhere only such lines are, and the others are what they print."""
    lines = block.text.splitlines()
    shown = any(line.startswith("$ ") for line in lines)
    found: list[Command] = []
    i = 0
    while i < len(lines):
        start, line = i, lines[i]
        i += 1
        if shown and not line.startswith("$ "):
            if found:
                found[-1] = found[-1]._replace(output=f"{found[-1].output}{line}\n")
            continue
        text = without_comment(line.removeprefix("$ "))
        while i < len(lines) and (text is None or text.endswith("\\")):
            line = f"{line}\n{lines[i]}"
            text = without_comment(line.removeprefix("$ "))
            i += 1
        text = re.sub(r"\s*\\?\n\s*", " ", text if text is not None else line).strip()
        if text:
            found.append(Command(block.page, block.line + start, text))
    return found


def without_comment(line: str) -> str | None:
    """The line without what follows an unquoted ` #`; None if a quote is not closed."""
    quote = ""
    for i, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "#" and (i == 0 or line[i - 1].isspace()):
            return line[:i].rstrip()
    return None if quote else line.rstrip()


def inline_commands(page: str) -> Iterator[Command]:
    """`klsweep …` in running text, where it is whole."""
    text = re.sub(r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), (ROOT / page).read_text(), flags=re.M | re.S)
    for match in re.finditer(r"`(klsweep [^`]+)`", text):
        command = " ".join(match[1].split())
        if not re.search(r"…|\.\.\.|[<>|\[]|\b[A-Z]{3,}\b", command):
            yield Command(page, text[: match.start()].count("\n") + 1, command)


class Link(NamedTuple):
    page: str
    line: int
    target: str


def links(page: str) -> Iterator[Link]:
    """Links that stay in the repository."""
    text = (ROOT / page).read_text()
    for match in re.finditer(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", match[1]):
            yield Link(page, text[: match.start()].count("\n") + 1, match[1])


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).strip().replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-1")
    return found


def broken(link: Link) -> str | None:
    """Why a link leads nowhere, None if it does not."""
    file, _, anchor = link.target.partition("#")
    path = (ROOT / link.page).parent / file if file else ROOT / link.page
    if not path.exists():
        return f"{link.page}:{link.line}: {link.target}: no such file"
    if anchor and path.suffix == ".md" and anchor not in anchors(path):
        return f"{link.page}:{link.line}: {link.target}: no such heading"
    return None
