"""Text tables and plots: the only place where numbers are rounded."""
