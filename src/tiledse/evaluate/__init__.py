"""Accuracy of SE and TSE on the same images: three tasks, their metrics, and what a difference is worth."""
