"""The error for bad user input, and the text of other errors in one line."""


class InputError(ValueError):
    """Bad input from outside: a game, file, flag or checkpoint that cannot be used.

    The message is one line that says what is wrong, where, and what to do. `experiments.__main__`
    prints it and exits with code 2; library callers catch it as a `ValueError`.
    """


def one_line(error: Exception) -> str:
    """Return the reason of an OSError, or the first line of another error, for a message."""
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(reason).splitlines()[0]
