"""All methods together: the smallest models, the best for a budget, and what the records say of the published study."""

from combination.comparison import compared, front_in_words, points, smallest_within
from combination.conclusions import takeaways
from combination.joint import Joint
from combination.model_search import SearchError, search
from combination.recommendation import BudgetError, Recommendation, pareto_front, recommend
from combination.reported import beside_reported

__all__ = [
    "BudgetError",
    "Joint",
    "Recommendation",
    "SearchError",
    "beside_reported",
    "compared",
    "front_in_words",
    "pareto_front",
    "points",
    "recommend",
    "search",
    "smallest_within",
    "takeaways",
]
