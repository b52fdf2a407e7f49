"""Two networks on the same images: is the difference chance, and how large is it."""

from __future__ import annotations

from math import sqrt

from ..errors import TiledSEError


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
