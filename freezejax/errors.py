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
        """Keeps the beginning and the end of a message of more than 950 characters."""
        long = len(message) > _START + _END
        super().__init__(f"{message[:_START]} ... {message[-_END:]}" if long else message)
