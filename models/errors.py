"""What the networks refuse."""


class ModelError(Exception):
    """A network that does not exist, or that cannot be made as asked."""
