"""All methods together: the best model for a budget."""

from combination.recommend import BudgetError, Recommendation, pareto_front, recommend

__all__ = ["BudgetError", "Recommendation", "pareto_front", "recommend"]
