"""The paper's tables beside the networks as they are defined, cell by cell."""

from .cells import Cell, RuleValue, paper_cells, summarise
from .printed import choose_tables
from .rules import RULES, Rule

__all__ = ["RULES", "Cell", "Rule", "RuleValue", "choose_tables", "paper_cells", "summarise"]
