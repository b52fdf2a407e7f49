"""Two networks on the same images: is the difference chance, and how large is it."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

from ..errors import TiledSEError

if TYPE_CHECKING:
    import numpy as np


def mcnemar_p_value(lost: int, gained: int) -> float:
    """McNemar's exact test: how likely so uneven a split of lost and gained images is by chance.

    Two-sided: if both networks were equally accurate, an image on which one of the two is right would be lost
    or gained with probability 1/2 each. Images on which both are right or both wrong say nothing.

    Args:
        lost: Images that the first network has right and the second has not.
        gained: Images that the second network has right and the first has not.

    Returns:
        The p-value, from 0 to 1; 1 where nothing is lost or gained.

    Raises:
        TiledSEError: a count below 0.

    Example:
        >>> mcnemar_p_value(8, 0), mcnemar_p_value(0, 0)
        (0.0078125, 1.0)
    """
    from scipy.stats import binomtest

    if min(lost, gained) < 0:
        raise TiledSEError(f"expected counts of at least 0, got lost {lost} and gained {gained}")
    if lost + gained == 0:
        return 1.0
    return float(binomtest(lost, lost + gained, 0.5).pvalue)


def drop_interval(lost: int, gained: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the drop in accuracy, (lost - gained) / n, between two networks on the same images.

    Wald's interval with Bonett and Price's adjustment: one more image in each of lost and gained. Fagerland,
    Lydersen and Laake, "Recommended tests and confidence intervals for paired binomial proportions",
    Statistics in Medicine 33 (2014), recommend it. Unlike Wald's it has a width where nothing is lost or
    gained.

    Args:
        lost: As in ``mcnemar_p_value``.
        gained: As in ``mcnemar_p_value``.
        n: All images.
        confidence: Level, between 0 and 1.

    Returns:
        Lower and upper bound as proportions, from -1 to 1.

    Raises:
        TiledSEError: no image, more lost and gained than images, a level outside 0 to 1.

    Example:
        >>> low, high = drop_interval(lost=24, gained=12, n=1300)
        >>> f"{100 * low:.2f} to {100 * high:.2f} percentage points"
        '-0.00 to 1.85 percentage points'
    """
    from scipy.stats import norm

    if min(lost, gained) < 0 or n < 1 or lost + gained > n:
        raise TiledSEError(
            f"expected lost and gained of at least 0 and together at most n, got {lost}, {gained}, {n}"
        )
    if not 0 < confidence < 1:
        raise TiledSEError(f"expected a confidence between 0 and 1, got {confidence}")
    p, q = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    half = float(norm.ppf((1 + confidence) / 2)) * sqrt((p + q - (p - q) ** 2) / (n + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)


def resampled_weights(n: int, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """How often each of n images is drawn, in bootstrap samples of n images with replacement.

    Args:
        n: Images.
        resamples: Samples.
        seed: Of the draws; the same seed gives the same samples.

    Returns:
        (resamples, n) whole numbers; each row sums to n.

    Raises:
        TiledSEError: no image, or no sample.

    Example:
        >>> resampled_weights(4, resamples=2).sum(1).tolist()
        [4, 4]
    """
    import numpy as np

    if n < 1 or resamples < 1:
        raise TiledSEError(f"expected at least 1 image and 1 resample, got {n} and {resamples}")
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)


def bootstrap_interval(drops: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Percentile interval and p-value of a drop, from its values over bootstrap samples of the images.

    Both networks are scored on the same samples, so what is hard in an image is hard for both and cancels.
    Efron and Tibshirani, "An introduction to the bootstrap" (1993), chapters 13 and 16.

    Args:
        drops: (resamples,) drops; not-a-number where a sample has no score.
        confidence: Level, between 0 and 1.

    Returns:
        Lower bound, upper bound, and two-sided p-value: twice the share of samples on the rarer side of no drop,
        with one sample more on each side, so that it is never 0.

    Raises:
        TiledSEError: fewer than two samples have a score.

    Example:
        >>> import numpy as np
        >>> low, high, p = bootstrap_interval(np.linspace(-0.5, 1.5, 1001))
        >>> round(low, 2), round(high, 2), round(p, 2)
        (-0.45, 1.45, 0.5)
    """
    import numpy as np

    scored = drops[np.isfinite(drops)]
    if len(scored) < 2:
        raise TiledSEError("too few bootstrap samples have a score; take more images")
    tail = 50 * (1 - confidence)
    low, high = np.percentile(scored, [tail, 100 - tail])
    rarer = min(int((scored <= 0).sum()), int((scored >= 0).sum()))
    return float(low), float(high), min(1.0, 2 * (rarer + 1) / (len(scored) + 1))
