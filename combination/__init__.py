"""All methods together: in one training, in a search for the smallest models, and the best model for a budget."""

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
