"""Confidence intervals of means over instances, resampled by image.

Instances of one image are not independent, so images are resampled (cluster bootstrap; Field and Welsh 2007,
"Bootstrapping clustered data"). Means are studentized with the standard error of a ratio, which is more exact with few
images than percentiles are. The intervals of several means hold simultaneously: their width comes from the largest
studentized deviation of a resample (single-step max-t, Westfall and Young 1993).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

_AT_ONCE = 1 << 22
"""Entries of the matrix of resamples that are in memory at once."""
_ZERO = 1e-12
"""Standard errors below are rounding of zero."""


@dataclass(frozen=True)
class Means:
    """Means of several columns over instances, and their resamples."""

    means: Float[np.ndarray, " k"]
    errors: Float[np.ndarray, " k"]
    """Standard errors."""
    deviations: Float[np.ndarray, "b k"]
    """Studentized deviations of the resampled means."""
    images: Integer[np.ndarray, " k"]
    """Images with a value, per column."""


def resampled(
    values: Float[np.ndarray, "n k"], images: Integer[np.ndarray, " n"], resamples: int, rng: np.random.Generator
) -> Means:
    """Means of the columns over instances, and those of resampled images.

    Args:
        values: One row per instance; NaN where an instance does not count in a column.
        images: Image of each instance.
        resamples: Number of resamples.
        rng: Generator of the resamples.
    """
    _, index = np.unique(images, return_inverse=True)
    count = int(index.max()) + 1
    counted = ~np.isnan(values)
    sums, sizes = np.zeros((count, values.shape[1])), np.zeros((count, values.shape[1]))
    np.add.at(sums, index, np.where(counted, values, 0.0))
    np.add.at(sizes, index, counted.astype(float))
    clusters = (sizes > 0).sum(0)
    means, errors = _ratio(sums.sum(0), sizes.sum(0), _squares(sums, sizes).sum(0), clusters)
    parts = np.concatenate([sums, sizes, *np.moveaxis(_squares(sums, sizes), -1, 0)], axis=1)
    deviations = []
    step = max(1, _AT_ONCE // count)
    for start in range(0, resamples, step):
        weights = rng.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - start)).astype(float)
        total, size, *squares = np.split(weights @ parts, 5, axis=1)
        again, error = _ratio(total, size, np.stack(squares, axis=-1), clusters)
        usable = (size > 0) & (error > _ZERO)
        deviations.append(np.where(usable, (again - means) / np.where(usable, error, 1.0), 0.0))
    return Means(means, errors, np.concatenate(deviations), clusters)


def columns(part: Means, chosen: Sequence[int]) -> Means:
    """Some of the columns."""
    pick = list(chosen)
    return Means(part.means[pick], part.errors[pick], part.deviations[:, pick], part.images[pick])


def simultaneous(parts: Sequence[Means], confidence: float) -> list[Float[np.ndarray, "k 2"]]:
    """Intervals that hold together for all columns of all parts; the parts have equal numbers of resamples.

    Args:
        parts: Independent sets of instances.
        confidence: In (0, 1).

    Returns:
        Lower and upper bounds, per part.
    """
    largest = np.abs(np.concatenate([part.deviations for part in parts], axis=1)).max(1)
    width = float(np.quantile(largest, confidence))
    return [np.stack([p.means - width * p.errors, p.means + width * p.errors], axis=1) for p in parts]


def _squares(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Products behind the squared residuals of a ratio: sums², sums sizes, sizes²."""
    return np.stack([sums**2, sums * sizes, sizes**2], axis=-1)


def _ratio(
    total: np.ndarray, size: np.ndarray, squares: np.ndarray, clusters: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A ratio of totals and its standard error by linearization."""
    size = np.maximum(size, 1.0)
    mean = total / size
    residuals = squares[..., 0] - 2 * mean * squares[..., 1] + mean**2 * squares[..., 2]
    correction = clusters / np.maximum(clusters - 1, 1)
    error: np.ndarray = np.sqrt(np.maximum(residuals, 0.0) * correction) / size
    return mean, error
