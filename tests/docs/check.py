"""Execute the documentation: `make docs-check`, or some pages with `ONLY=README.md,docs/own.md`.

    python -m tests.docs.check [PAGE,…]

Every command in a fenced block is carried out, in order, in its page's own folder, by the rules in `rules.py`; what
cannot be is read by the command line's own parser and listed with the reason. Links and commands in running text are
looked at, too. Exit code 1 if anything is not as the page says.
"""

import contextlib
import io
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from klsweep.cli import parse
from tests.docs.pages import ROOT, SHELL, Block, Command, blocks, broken, commands, inline_commands, links, pages
from tests.docs.rules import Rule, code_for, rule_for
from tests.docs.workshop import Bench, Done, Workshop
from tests.mirror.wandb_server import WandbServer, serving

WORKERS = 2
COMPOSING = r"^klsweep (train|sweep|plan|smoke|doctor|fetch) "


@dataclass
class Report:
    """What was done with the pages."""

    executed: list[str] = field(default_factory=list)
    parsed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, kept: list[str], line: str) -> None:
        kept.append(line)
        print(line, flush=True)


def readable(command: Command) -> str | None:
    """Why the command line would not take the words of a command, None if it would. Nothing is executed."""
    words = shlex.split(command.text)
    if words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        return done.stderr.strip() or None
    if words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = re.findall(r"\[(.*)\]", words[2])
        return None if all(e in project["optional-dependencies"] for e in extras) else f"no extra {extras}"
    if words[0] != "klsweep":
        return "no rule"
    error = io.StringIO()
    try:
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(error):
            parse(words[1:])
    except SystemExit as end:
        return error.getvalue().strip() if end.code else None
    return None


def static_faults(page: str) -> Iterator[str]:
    """Links that lead nowhere, commands without a rule or with words that no command takes, code without a rule."""
    yield from filter(None, map(broken, links(page)))
    for command in inline_commands(page):
        # a command's bare name in a sentence needs no arguments
        if len(command.text.split()) > 2 and (fault := readable(command)):
            yield f"{command.place}: {command.text}: {fault}"
    for block in blocks(page):
        if code_for(block) is not None:
            continue
        if block.language not in SHELL:
            yield f"{page}:{block.line}: a block of {block.language} without a rule in tests/docs/rules.py"
            continue
        for command in commands(block):
            rule = rule_for(command)
            if rule is None:
                yield f"{command.place}: {command.text}: no rule in tests/docs/rules.py"
            elif rule.parsed and (fault := readable(command)):
                yield f"{command.place}: {command.text}: {fault}"


def check_page(page: str, workshop: Workshop, has_slurm: bool, report: Report) -> None:
    """Go through a page from top to bottom."""
    bench = Bench(workshop, page)
    for block in blocks(page):
        code = code_for(block)
        if code is not None:
            for command in _use(bench, block):
                _execute(bench, Command(page, block.line, command), Rule(""), report)
        elif block.language in SHELL:
            for command in commands(block):
                rule = rule_for(command)
                assert rule is not None
                if rule.parsed or (rule.needs == "slurm" and not has_slurm):
                    _only_read(bench, command, rule, report)
                else:
                    _execute(bench, command, rule, report)


def _use(bench: Bench, block: Block) -> list[str]:
    """Put a block where its rule says, and return the commands that have to work then."""
    code = code_for(block)
    assert code is not None
    if code.shown:
        return []
    if not code.file:
        (bench.folder / "block.py").write_text(bench.bound(block.text))
        return [f"PYTHONPATH={ROOT}:$PYTHONPATH {sys.executable} -m tests.docs.figures block.py"]
    file = bench.folder / code.file
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.read_text() if code.appended else ""
    for pattern, text in code.edits:
        before, times = re.subn(pattern, lambda _, text=text: text, before)
        assert times == 1, (pattern, times)
    file.write_text(f"{before}\n\n{block.text}" if before else block.text)
    return list(code.then)


def _execute(bench: Bench, command: Command, rule: Rule, report: Report) -> None:
    text = command.text
    for old, new in rule.replace:
        text = text.replace(old, new)
    text = f"{text} {rule.append}".strip()
    text = text if rule.code else bench.bound(text)  # what is meant to fail does so as it stands
    start = time.monotonic()
    done = bench.run(text)
    seconds = time.monotonic() - start
    changed = f"   ({text})" if text != command.text else ""
    if fault := _fault(command, rule, done):
        report.add(report.failed, f"FAILED {seconds:5.1f} s  {command.place}  {text}\n{fault}")
    else:
        report.add(report.executed, f"ok     {seconds:5.1f} s  {command.place}  {command.text}{changed}")


def _fault(command: Command, rule: Rule, done: Done) -> str | None:
    """What is not as the page says."""
    output = f"exit code {done.code}\n" + "".join(f"    {line}\n" for line in done.output.splitlines()[-30:])
    if done.code != rule.code:
        return output
    if rule.says and command.output and _trimmed(done.output) != _trimmed(command.output):
        return f"{output}  but the page shows\n    {command.output}"
    return "a traceback:\n" + output if "Traceback (most recent call last)" in done.output else None


def _trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _only_read(bench: Bench, command: Command, rule: Rule, report: Report) -> None:
    """What is not executed has been read by the parser; an outline composes its configuration, too."""
    why = rule.parsed or "no SLURM here (apt-get install slurm-wlm munge)"
    if rule.outline:
        text = re.sub(r" --outline\b", "", command.text)
        text = re.sub(r"(?<=smoke )(?=\w+ )", "experiment=", text)
        outline = bench.bound(re.sub(COMPOSING, "klsweep plan --outline ", text))
        done = bench.run(outline)
        if done.code:
            report.add(report.failed, f"FAILED          {command.place}  {outline}\n{_fault(command, rule, done)}")
            return
        why += "; composed"
    report.add(report.parsed, f"parsed          {command.place}  {command.text}   ({why})")


def main(arguments: list[str]) -> int:
    chosen = arguments[0].split(",") if arguments else pages()
    if unknown := [page for page in chosen if page not in pages()]:
        print(f"no page {unknown[0]!r} (choose from {', '.join(pages())})", file=sys.stderr)
        return 2
    report, start = Report(), time.monotonic()
    for page in chosen:
        for fault in static_faults(page):
            report.add(report.failed, f"FAILED          {fault}")
    if not report.failed:
        with tempfile.TemporaryDirectory(prefix="klsweep-docs-") as root, serving(WandbServer()) as wandb:
            workshop = Workshop(Path(root), wandb.url)
            has_slurm = workshop.start_slurm()
            try:
                with ThreadPoolExecutor(WORKERS) as pool:
                    list(pool.map(lambda page: check_page(page, workshop, has_slurm, report), _longest_first(chosen)))
            finally:
                workshop.stop_slurm()
    print(
        f"\n{len(report.executed)} executed, {len(report.parsed)} parsed only, {len(report.failed)} failed "
        f"in {time.monotonic() - start:.0f} s ({_processor_seconds():.0f} s of processor time)"
    )
    for line in [*report.parsed, *report.failed]:
        print(line)
    return 1 if report.failed else 0


def _processor_seconds() -> float:
    """What the commands took, whatever else the machine was doing."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _longest_first(chosen: list[str]) -> list[str]:
    count = {page: sum(len(commands(b)) for b in blocks(page) if b.language in SHELL) for page in chosen}
    return sorted(chosen, key=lambda page: -count[page])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
