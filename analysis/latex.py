"""A table in LaTeX, with booktabs; a long one with longtable. Best is bold, what cannot be told from it underlined."""

from itertools import groupby

from klsweep.analysis.table import Entry, Table

LONG = 45  # rows; more do not fit on a page
SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "–": "--",
    "−": r"$-$",
    "×": r"$\times$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "√": r"$\surd$",
    "‖": r"$\|$",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
    "→": r"$\to$",
    "ℓ": r"$\ell$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "π": r"$\pi$",
    "σ": r"$\sigma$",
    "τ": r"$\tau$",
    "χ": r"$\chi$",
    "Δ": r"$\Delta$",
    "Σ": r"$\Sigma$",
    "◆": r"\textbf{bold}:",
    "◇": r"\underline{underlined}:",
}


def latex(table: Table) -> str:
    """A fragment to \\input: coverage, table, notes. Its first line names the packages."""
    long = len(table.rows) > LONG
    kind = "longtable" if long else "tabular"
    layout = "".join("l" if column.label else "r" for column in table.columns)
    head = [*_group_lines(table), _line([escaped(column.title) for column in table.columns]), r"\midrule"]
    rows = [_line([_entry(entry) for entry in line.entries]) for line in table.rows]
    packages = r"\usepackage{booktabs}" + (r", \usepackage{longtable}" if long else "")
    return "\n".join(
        [
            f"% {packages}",
            r"\begingroup\footnotesize",
            *(rf"\noindent {escaped(line)}\par" for line in table.coverage),
            r"\medskip",
            ("" if long else r"\noindent") + rf"\begin{{{kind}}}{{@{{}}{layout}@{{}}}}",
            r"\toprule",
            *head,
            *([r"\endhead"] if long else []),
            *rows,
            r"\bottomrule",
            rf"\end{{{kind}}}" + ("" if long else r"\par"),
            r"\medskip",
            *(rf"\noindent {escaped(note)}\par" for note in (*table.notes, *(f"warning: {w}" for w in table.warnings))),
            r"\endgroup",
            "",
        ]
    )


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is; a character beyond Latin-1 that is not known here as its code point."""
    return "".join(SPECIAL.get(c) or (c if ord(c) < 256 else rf"\texttt{{U+{ord(c):04X}}}") for c in text)


def _line(texts: list[str]) -> str:
    """A row. What it begins with could be taken for an argument of the row's or the rule's end before it."""
    guard = "{}" if texts[0].startswith(("[", "*")) else ""
    return guard + " & ".join(texts) + r" \\"


def _entry(entry: Entry) -> str:
    wrap = {"best": r"\textbf{%s}", "tied": r"\underline{%s}", None: "%s"}[entry.mark]
    return wrap % escaped(entry.text)


def _group_lines(table: Table) -> list[str]:
    """The headings over several columns, each with a rule; none if no column has one."""
    if not any(column.group for column in table.columns):
        return []
    texts, rules, start = [], [], 1
    for name, members in groupby(table.columns, lambda column: column.group):
        width = len(list(members))
        texts.append(rf"\multicolumn{{{width}}}{{c}}{{{escaped(name)}}}" if name else " & " * (width - 1))
        rules += [rf"\cmidrule(lr){{{start}-{start + width - 1}}}"] if name else []
        start += width
    return [_line(texts), "".join(rules)]
