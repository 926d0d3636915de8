"""What to keep of every convolution: the plan as data, how it is chosen by rule, and re-fitted coefficients."""

from sparsify.filters.filter import Filter

from .plan import KINDS, SCHEMA, FilterPlan, Plan, has_coefficients

__all__ = ["KINDS", "SCHEMA", "Filter", "FilterPlan", "Plan", "has_coefficients"]
