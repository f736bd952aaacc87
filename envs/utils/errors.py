"""The error for bad user input: the command line prints it as one line and exits with code 2."""


class InputError(ValueError):
    """Bad input from outside: a game, file, flag or checkpoint that cannot be used.

    The message is one line that says what is wrong, where, and what to do. `experiments.__main__`
    prints it and exits with code 2; library callers catch it as a `ValueError`.
    """
