"""Configuration of the agent's network and loss. Loads no torch."""

from dataclasses import dataclass

from envs.controls import ACTIONS
from envs.utils.errors import InputError

RETURNS = ("lambda", "vtrace")


@dataclass(frozen=True)
class PolicyConfig:
    """Architecture of the agent. The defaults are those of App. A.3: 3.22 M parameters."""

    actions: tuple[str, ...] = ACTIONS
    """Names of the actions, e.g. right left jump jump+right none. `explore` takes those of its
    world model if they were chosen, else those of its games."""
    channels: tuple[int, ...] = (32, 32, 64, 64)
    """Channels of each convolution. Each is followed by a pooling that halves the frame."""
    lstm_dim: int = 512
    """Units of the LSTM."""
    feature_norm: bool = False
    """Bring the convolutions' output for each frame to mean 0 and deviation 1 before the LSTM. Its
    inputs are otherwise all positive, so that a few hundred updates with a large learning rate
    shift all gates alike and close them: the agent no longer looks at the screen."""
    size: int = 64
    """Height and width of a frame in pixels."""

    def __post_init__(self) -> None:
        if (
            len(self.actions) < 2
            or self.lstm_dim < 1
            or not self.channels
            or min(self.channels) < 1
        ):
            raise InputError(
                f"policy with {len(self.actions)} actions, {self.channels} channels, "
                f"{self.lstm_dim} units: too few"
            )
        if self.size % 2 ** len(self.channels):
            raise InputError(
                f"frames of {self.size} pixels cannot be halved {len(self.channels)} times"
            )

    @property
    def features(self) -> int:
        """Size of the convolutions' output for a frame: 1,024 in the paper."""
        return self.channels[-1] * (self.size >> len(self.channels)) ** 2


@dataclass(frozen=True)
class LossConfig:
    """Coefficients of the loss. The defaults are those of App. A.3 and the published code."""

    gamma: float = 0.995
    """Discount factor."""
    lambda_: float = 0.95
    """Trace decay of the returns."""
    entropy_coeff: float = 0.001
    """Coefficient of the entropy bonus; with a target entropy its first value."""
    target_entropy: float = 0.0
    """Entropy of the policy, as a fraction of that of a uniform one, to which the coefficient of
    the bonus is adjusted after every update (as in SAC); 0 keeps the coefficient."""
    value_coeff: float = 1.0
    """Coefficient of the value loss."""
    returns: str = "vtrace"
    """Value targets: vtrace (off-policy corrected, for a replay buffer of older policies), or
    lambda, as published."""
    rho_clip: float = 1.0
    """Maximum importance ratio pi / mu that weights a step's policy gradient; 0 disables the
    weighting, as published."""
    normalize_advantages: bool = False
    """Normalize the advantages of a batch to mean 0 and standard deviation 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1 or not 0 <= self.lambda_ <= 1:
            raise InputError(f"gamma {self.gamma}, lambda_ {self.lambda_}: must be from 0 to 1")
        if not 0 <= self.target_entropy < 1:
            raise InputError(f"target_entropy {self.target_entropy}: must be 0 (off) to below 1")
        if self.returns not in RETURNS:
            raise InputError(f"returns {self.returns!r}: choose one of {', '.join(RETURNS)}")
        if self.rho_clip < 0 or (self.returns == "vtrace" and self.rho_clip == 0):
            raise InputError(
                f"rho_clip {self.rho_clip}: must be 0 (off) or more, and above 0 with vtrace"
            )


def check_exploration(epsilon: float, temperature: float) -> None:
    """Raise InputError for an epsilon outside [0, 1] or a negative temperature."""
    if not 0 <= epsilon <= 1:
        raise InputError(f"epsilon {epsilon}: must lie between 0 and 1")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature {temperature}: must be 0 or more")
