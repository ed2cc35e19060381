"""Tables and words: what the records say, beside the published study's figures."""

from report.comparison import by_width, compared, front_in_words, loss_and_size, points, smallest_within
from report.conclusions import takeaways
from report.published import beside_published, beside_reported, published_study
from report.tables import export_table, interval, percent, seeds_in_words, summary

__all__ = [
    "beside_published",
    "beside_reported",
    "by_width",
    "compared",
    "export_table",
    "front_in_words",
    "interval",
    "loss_and_size",
    "percent",
    "points",
    "published_study",
    "seeds_in_words",
    "smallest_within",
    "summary",
    "takeaways",
]
