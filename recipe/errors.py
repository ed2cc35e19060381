"""The errors that this project raises on purpose: each message says what is wrong, and what to do."""


class CompressionError(Exception):
    """Of all of them the base class."""


class StepError(CompressionError):
    """A step that cannot be taken: a hyperparameter out of range, or a step that cannot follow those before it."""


class DataError(CompressionError):
    """A data set that does not exist or cannot be read."""
