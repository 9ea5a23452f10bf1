"""The one error that users cause and klsweep explains: it becomes one line and exit code 2."""


class BadInput(ValueError):
    """Names the field, the value and the valid choices, in one line."""
