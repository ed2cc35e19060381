"""What happens inside a training besides the updates: pruning, rounding, or anything of one's own."""


class Callback:
    """Called by `fit` with the share of the training that is done by then.

    What a callback knows has to follow from the model's tensors, so that a training that was killed goes on as it was.
    """

    def before_epoch(self, done: float) -> None:
        """Before an epoch: 0 before the first one."""

    def after_step(self, done: float) -> None:
        """After an update: 1 after the last one; once more after the weights were averaged, if they are."""


class Since(Callback):
    """Another callback from a share of the training on: for it, the training begins there."""

    def __init__(self, start: float, inner: Callback):
        self.start, self.inner = start, inner

    def before_epoch(self, done: float) -> None:
        self.inner.before_epoch(self._share(done))

    def after_step(self, done: float) -> None:
        self.inner.after_step(self._share(done))

    def _share(self, done: float) -> float:
        return max(0.0, (done - self.start) / (1 - self.start))
