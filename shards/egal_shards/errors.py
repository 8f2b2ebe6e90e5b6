"""The one error of this package."""


class ShardError(ValueError):
    """One line that says what is wrong, where, and how to mend it."""
