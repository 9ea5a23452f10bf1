"""Run a Python block of the documentation: a statement with a number in its comment has to come to that number.

python -m tests.docs.figures FILE
"""

import ast
import re
import sys
from pathlib import Path


def check(text: str) -> None:
    """Execute it, statement by statement. AssertionError for a figure that is another."""
    names: dict = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Expr):
            value = eval(compile(ast.Expression(statement.value), "block", "eval"), names)
        else:
            exec(compile(ast.Module([statement], []), "block", "exec"), names)
            target = statement.targets[0] if isinstance(statement, ast.Assign) else None
            value = names[target.id] if isinstance(target, ast.Name) else None
        said = re.search(r"# (-?\d+(?:\.(\d+))?)", text.splitlines()[(statement.end_lineno or 1) - 1])
        if said:
            assert round(float(value), len(said[2] or "")) == float(said[1]), f"{value}, not {said[1]}"


if __name__ == "__main__":
    check(Path(sys.argv[1]).read_text())
