"""The terminal, or what stands in for it."""

from rich.console import Console

PIPE_WIDTH = 200  # a pipe has no width of its own: never fold a line for it


def console(stderr: bool = False) -> Console:
    """A console on stdout or stderr. Text is printed as it is: brackets in a cause or a path are no mark-up."""
    found = Console(stderr=stderr, markup=False, highlight=False)
    if not found.is_terminal:
        found.width = PIPE_WIDTH
    return found
