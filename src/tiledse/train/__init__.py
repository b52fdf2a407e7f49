"""Training: recipes, the loop, and what each task trains on."""

from .recipe import Recipe, Variant

__all__ = ["Recipe", "Variant"]
