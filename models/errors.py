"""What the networks refuse."""

from recipe import CompressionError


class ModelError(CompressionError):
    """A network that does not exist, or that cannot be made as asked."""
