"""Networks that were trained here: weights in the package, their origin and accuracy in index.json."""

from .catalogue import Entry, entries, find_entry
from .opening import open_network

__all__ = ["Entry", "entries", "find_entry", "open_network"]
