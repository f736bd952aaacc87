"""Agreement of people who judged the same samples: Krippendorff's alpha, mean correlation."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

Judgements = Mapping[str, Mapping[int, float]]
"""Sample -> participant -> value. Participants need not have judged every sample."""
Scale = Literal["ordinal", "interval"]


def krippendorff_alpha(judgements: Judgements, scale: Scale) -> float:
    """Return Krippendorff's alpha: 1 is full agreement, 0 that of chance, below 0 is worse.

    1 - observed / expected disagreement, over the pairs of values of a sample and over all pairs.
    The disagreement of two values is their squared distance; on the ordinal scale that of their
    ranks (Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011). NaN if no sample has two
    values, or all values are equal.
    """
    units = [list(values.values()) for values in judgements.values() if len(values) > 1]
    counts = Counter(value for unit in units for value in unit)
    total = counts.total()
    if len(counts) < 2:
        return math.nan
    distance = _ordinal_distance(counts) if scale == "ordinal" else _interval_distance
    observed = sum(
        distance(a, b) / (len(unit) - 1)
        for unit in units
        for a, b in itertools.permutations(unit, 2)
    )
    expected = sum(
        counts[a] * counts[b] * distance(a, b) for a, b in itertools.permutations(counts, 2)
    )
    return 1 - (total - 1) * observed / expected


def _interval_distance(a: float, b: float) -> float:
    return (a - b) ** 2


def _ordinal_distance(counts: Counter[float]) -> Callable[[float, float], float]:
    """Return the squared distance of two values in ranks, from how often each value occurs."""
    values = sorted(counts)
    ends = np.cumsum([counts[value] for value in values]).tolist()
    middle = {value: end - counts[value] / 2 for value, end in zip(values, ends, strict=True)}
    return lambda a, b: (middle[a] - middle[b]) ** 2


def mean_correlation(judgements: Judgements) -> float:
    """Return the mean Pearson correlation of all pairs of participants, in [-1, 1].

    A pair counts if neither gave the same value to all samples that both judged. NaN without one.
    """
    participants = sorted({number for values in judgements.values() for number in values})
    found = []
    for one, other in itertools.combinations(participants, 2):
        common = [v for v in judgements.values() if one in v and other in v]
        a, b = (np.array([values[number] for values in common]) for number in (one, other))
        if len(common) > 1 and a.std() > 0 and b.std() > 0:
            found.append(float(np.corrcoef(a, b)[0, 1]))
    return float(np.mean(found)) if found else math.nan
