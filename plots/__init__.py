"""Charts, one function each: DataFrame of records in, matplotlib Axes out."""

from plots.comparison import accuracy_against_size, latency_bars
from plots.style import save_figure, use_style
from plots.training import training_curves

__all__ = ["accuracy_against_size", "latency_bars", "save_figure", "training_curves", "use_style"]
