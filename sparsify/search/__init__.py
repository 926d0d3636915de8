"""How a plan within a budget is found: sensitivities, predicted time, the knapsack, and better coefficients."""
