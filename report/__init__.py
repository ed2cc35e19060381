"""Reports: tables and conclusions from the records, compared with the published study's figures."""

from report.comparison import (
    beside,
    beside_the_chain,
    by_sparsity,
    by_width,
    chosen_on_validation,
    compared,
    ends_of_fronts,
    loss_and_size,
    pairs,
)
from report.conclusions import takeaways
from report.published import beside_published, beside_reported, published_study
from report.tables import export_table, percent, settings, summary

__all__ = [
    "beside",
    "beside_published",
    "beside_reported",
    "beside_the_chain",
    "by_sparsity",
    "by_width",
    "chosen_on_validation",
    "compared",
    "ends_of_fronts",
    "export_table",
    "loss_and_size",
    "pairs",
    "percent",
    "published_study",
    "settings",
    "summary",
    "takeaways",
]
