"""The errors that this project raises on purpose. Each message says what is wrong and what to do."""


class CompressionError(Exception):
    """Base class of all of them."""


class StepError(CompressionError):
    """A step that cannot run: a hyperparameter is out of range, or it cannot follow the steps before it."""


class DataError(CompressionError):
    """A data set that does not exist or cannot be read."""
