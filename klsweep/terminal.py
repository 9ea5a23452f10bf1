"""The terminal, or what stands in for it."""

from rich.console import Console

PIPE_WIDTH = 200  # a pipe has no width of its own: never fold a line for it


def console(stderr: bool = False) -> Console:
    """A console on stdout or stderr."""
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=PIPE_WIDTH)
