"""Coefficient of the entropy bonus, which brings the policy's entropy to a target."""

import math
from dataclasses import dataclass, replace

STEP = 0.05
"""Change of the logarithm of the coefficient in an update, for an entropy that misses its target by
all of ln A."""
SCALES = (1e-3, 1e3)
"""Smallest and largest factor of the configured coefficient."""


@dataclass(frozen=True)
class EntropyBonus:
    """Entropy bonus of an update."""

    configured: float
    """Coefficient without an adjustment."""
    target: float
    """Target as a share of the largest entropy; 0 keeps the coefficient as it is."""
    largest: float
    """Largest entropy of a policy of A actions, ln A nats."""
    scale: float = 1.0
    """Factor of the configured coefficient that has brought the entropy near its target."""

    @property
    def coefficient(self) -> float:
        """Coefficient of the bonus in the loss."""
        return self.configured * self.scale

    def adjusted(self, entropy: float) -> "EntropyBonus":
        """Raise the coefficient if the entropy of an update's policy, in nats, is below its target,
        and lower it otherwise."""
        if not self.target:
            return self
        change = math.exp(STEP * (self.target - entropy / self.largest))
        low, high = SCALES
        return replace(self, scale=min(max(self.scale * change, low), high))
