"""The report: one page, in one file, of what tiles do to a network; it opens from disk, prints, and loads nothing."""

from .contents import Candidate
from .making import Page, report, search_record

__all__ = ["Candidate", "Page", "report", "search_record"]
