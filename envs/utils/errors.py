"""The one error type that a person's mistake raises: the command line answers it with one line and exit code 2."""


class InputError(ValueError):
    """Bad input from outside: a game, file, flag or checkpoint that cannot be used.

    The message is one line that says what was wrong, where, and what to do. `experiments.__main__` prints it and exits
    with code 2; library callers catch it as a `ValueError`.
    """
