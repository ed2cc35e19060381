"""All methods together: the best model for a budget, and what the records say of the study."""

from combination.recommend import BudgetError, Recommendation, pareto_front, recommend
from combination.takeaways import takeaways

__all__ = ["BudgetError", "Recommendation", "pareto_front", "recommend", "takeaways"]
