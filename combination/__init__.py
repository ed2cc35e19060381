"""Combinations of all methods: in one training, a search for small models, and the best model for a budget."""

from combination.joint import Joint
from combination.model_search import SearchError, search
from combination.recommendation import BudgetError, Recommendation, pareto_front, recommend

__all__ = [
    "BudgetError",
    "Joint",
    "Recommendation",
    "SearchError",
    "pareto_front",
    "recommend",
    "search",
]
