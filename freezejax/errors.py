"""The one exception for bad input: configs, flags, data files, checkpoints, rules."""


class UserError(ValueError):
    """Bad input, told in one line: what is wrong, where, and what would be right.

    Command lines print the message alone and exit with code 2.

    >>> raise UserError("freeze.at=1.5: a fraction lies in (0, 1); use an int for a step")
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: freeze.at=1.5: a fraction lies in (0, 1); use an int for a step
    """
