"""The error of this package."""

from recipe import CompressionError


class ModelError(CompressionError):
    """A network that does not exist or cannot be built as requested."""
