"""Text and pictures: the only place where numbers are rounded."""
