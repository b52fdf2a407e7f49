"""Training: recipes, the loop, and what each task trains on."""

from .recipe import Recipe
from .sections import Variant

__all__ = ["Recipe", "Variant"]
