"""Means, variances and covariances of pairs, gathered as they come."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Moments:
    """First and second moments of pairs (x, y), in cells of their own.

    Batches are merged by their own means (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances", 1979), so that no large sums of squares cancel. Memory is that of the cells.

    Args:
        n: Pairs in each cell.
        mean_x: Mean of x, an array of cells; as the others.
        mean_y: Mean of y.
        xx: Sum of squared deviations of x from its mean.
        yy: Likewise of y.
        xy: Sum of products of both deviations.

    Example:
        >>> x = np.array([[1.0], [2.0], [4.0]])
        >>> moments = Moments.of(x[:2], x[:2] * 3)
        >>> moments.merge(Moments.of(x[2:], x[2:] * 3))
        >>> moments.n.tolist(), moments.correlation().round(6).tolist()
        ([3.0], [1.0])
    """

    n: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray
    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> Moments:
        """Of pairs along the first axis; the other axes are the cells. x and y are broadcast."""
        x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
        mean_x, mean_y = x.mean(0), y.mean(0)
        dx, dy = x - mean_x, y - mean_y
        n = np.full(mean_x.shape, float(x.shape[0]))
        return cls(n, mean_x, mean_y, (dx * dx).sum(0), (dy * dy).sum(0), (dx * dy).sum(0))

    def merge(self, other: Moments) -> None:
        """Take in the pairs of another, cell by cell."""
        n = self.n + other.n
        weight = self.n * other.n / n
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        self.xx = self.xx + other.xx + dx * dx * weight
        self.yy = self.yy + other.yy + dy * dy * weight
        self.xy = self.xy + other.xy + dx * dy * weight
        self.mean_x = self.mean_x + dx * other.n / n
        self.mean_y = self.mean_y + dy * other.n / n
        self.n = n

    def pooled(self, axis: int | tuple[int, ...]) -> Moments:
        """The pairs of all cells along some axes taken together."""
        n = self.n.sum(axis, keepdims=True)
        mean_x = (self.n * self.mean_x).sum(axis, keepdims=True) / n
        mean_y = (self.n * self.mean_y).sum(axis, keepdims=True) / n
        dx, dy = self.mean_x - mean_x, self.mean_y - mean_y
        return Moments(
            n.squeeze(axis),
            mean_x.squeeze(axis),
            mean_y.squeeze(axis),
            (self.xx + self.n * dx * dx).sum(axis),
            (self.yy + self.n * dy * dy).sum(axis),
            (self.xy + self.n * dx * dy).sum(axis),
        )

    def at(self, cells: np.ndarray) -> Moments:
        """The cells that an index picks along the last axis."""
        return Moments(
            *(getattr(self, name)[..., cells] for name in ("n", "mean_x", "mean_y", "xx", "yy", "xy"))
        )

    def correlation(self) -> np.ndarray:
        """Pearson's r of each cell; not a number where x or y does not vary.

        Values that differ by rounding of float32 only (a gate that is 1 throughout) do not vary.
        """
        steady = 1e-7 * np.sqrt(self.n)
        flat = np.sqrt(self.xx) <= steady * np.abs(self.mean_x)
        flat |= np.sqrt(self.yy) <= steady * np.abs(self.mean_y)
        with np.errstate(divide="ignore", invalid="ignore"):
            r = self.xy / np.sqrt(self.xx * self.yy)
        return np.where(flat, np.nan, np.clip(r, -1.0, 1.0))
