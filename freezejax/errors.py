"""The one exception for bad input: configs, flags, data files, checkpoints, rules."""

_START, _END = 700, 250  # characters that are kept of a longer message: it may quote a damaged file


class UserError(ValueError):
    """Bad input, told in one line: what is wrong, where, and what would be right.

    Command lines print the message alone and exit with code 2.

    >>> raise UserError("freeze.at=1.5: a fraction lies in (0, 1); use an int for a step")
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: freeze.at=1.5: a fraction lies in (0, 1); use an int for a step
    """

    def __init__(self, message: str = "") -> None:
        """Writes out what no eye sees, and keeps the beginning and the end of more than 950 characters."""
        told = "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in message)
        super().__init__(f"{told[:_START]} ... {told[-_END:]}" if len(told) > _START + _END else told)
