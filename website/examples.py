"""Docstrings as the site shows them: ``Example:`` is the section that griffe calls ``Examples:``."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the section, so that doctests are shown as code and not read as markup."""

    def on_object(self, *, obj: griffe.Object, **more: Any) -> None:
        """Called with each object that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
