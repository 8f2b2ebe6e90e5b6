"""The error that every argument check of the kernels raises."""


class ArgumentError(ValueError):
    """A wrong argument: one line that names the argument, says what is wrong and what was expected."""
