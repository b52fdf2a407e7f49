"""What a network costs and what it loses, and what the paper says of it."""

from .costs import BlockCost, Cost, SECost, TSECost, cost

__all__ = ["BlockCost", "Cost", "SECost", "TSECost", "cost"]
