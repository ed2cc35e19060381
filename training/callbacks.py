"""Callbacks: what happens during a training besides the updates, such as pruning and rounding."""


class Callback:
    """Base class of what `fit` calls. `done` is the training progress, 0..1.

    A callback's state must follow from the model's tensors, so that an interrupted training resumes exactly.
    """

    def before_epoch(self, done: float) -> None:
        """Called before each epoch, with 0 before the first."""

    def after_step(self, done: float) -> None:
        """Called after each update, with 1 after the last; again with 1 after weights are averaged, if they are."""


class Since(Callback):
    """Map the progress after `start` to 0..1 for the callback `inner`, which sees 0 until then."""

    def __init__(self, start: float, inner: Callback):
        self.start, self.inner = start, inner

    def before_epoch(self, done: float) -> None:
        self.inner.before_epoch(self._progress(done))

    def after_step(self, done: float) -> None:
        self.inner.after_step(self._progress(done))

    def _progress(self, done: float) -> float:
        return max(0.0, (done - self.start) / (1 - self.start))
