"""Figure 24: scenes of which one frame does not tell enough, found by a search (App. F.6).

Shapes: B windows, F predicted frames, N tokens of a frame, H x W pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from envs.utils.atomic_io import write_json_atomic
from envs.utils.images import heat_map
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.runner import StageContext
from experiments.reports.images import write_labelled_films
from experiments.reproduction.coinrun_plans import diverse_plan
from experiments.reproduction.figures import PREDICTED, SCALE, Figure, strip_sampling, study_args
from experiments.studies.arguments import ModelArgs
from experiments.studies.common import StudyWindows, map_windows, open_study_model
from exploration.reward.token_entropy import uncertainty_reward
from worldmodel.evaluation.calibration import spearman
from worldmodel.metrics import frame_psnr

GIVEN = 1
"""Given frames: as in the paper one, which tells neither what is below nor whether a jump goes up.
"""
LATER = 5
"""Last predicted frames, whose error and uncertainty count."""
STRIDE = 10
"""Frames between the starts of two windows of an episode."""
NEWEST = 0.25
"""Share of the windows, those whose last frame shows most new, of which some are drawn."""
DRAWN = 3
"""Windows that are drawn, of different episodes."""
PATCH, UNLIKE = 8, 16
"""A patch of this side is new if it differs by more than this from every place of another frame, as
root of the mean square in grey levels."""
LABEL = "GenieRedux-G-TA"


@dataclass(frozen=True)
class SearchedWindows:
    """Windows, predictions and their measures."""

    sessions: list[str]
    starts: list[int]
    frames_BTHWC: Tensor
    """Real frames, uint8."""
    predicted_BFHWC: Tensor
    """Predicted frames, uint8."""
    entropy_BFN: Tensor
    """Entropy of each token of a frame, predicted in one pass with those before it (Eq. 2)."""
    psnr_BF: Tensor
    new_B: Tensor
    """Share of the last frame's patches that are new."""

    @property
    def quality_B(self) -> Tensor:
        """PSNR of the later frames."""
        return self.psnr_BF[:, -LATER:].mean(1)

    @property
    def uncertainty_B(self) -> Tensor:
        """Uncertainty of the later frames: the mean of what the reward makes of each (Eq. 3-4)."""
        of_frames = uncertainty_reward(self.entropy_BFN[:, -LATER:].flatten(0, 1).numpy())
        return torch.from_numpy(of_frames).view(-1, LATER).mean(1)

    def newest(self) -> Tensor:
        """Return the indices of the windows whose last frames show most new, at least one."""
        count = math.ceil(NEWEST * len(self.new_B))
        return self.new_B.argsort(descending=True, stable=True)[:count]

    def worst(self) -> list[int]:
        """Return the windows to draw: of the newest those with the most error, one an episode.

        Their uncertainty does not count, so that it is a finding.
        """
        newest = self.newest()
        order = newest[self.quality_B[newest].argsort(stable=True)].tolist()
        of_session: dict[str, int] = {}
        for index in order:
            of_session.setdefault(self.sessions[index], index)
        return list(of_session.values())[:DRAWN]


def limits_strips(c: PipelineConfig) -> Figure:
    """Return figure 24: the worst of those windows that one frame tells least of."""
    plan = diverse_plan(c, "ta")
    (test,) = plan.more_plays

    def draw(context: StageContext) -> list[str]:
        args = study_args(
            ModelArgs,
            context,
            c,
            "ta",
            test,
            limit=4 * (c.evaluate.get("limit") or 64),
            seed=c.seed,
            threads=c.threads or None,
        )
        found = search_windows(args, strip_sampling(c))
        result = rank_windows(found)
        write_json_atomic(context.out / "ranking.json", result)
        lines = [result["text"]]
        for place, index in enumerate(found.worst(), 1):
            lines.append(draw_window(context.out / f"window-{place}", found, index))
        return [*lines, f"{context.out / 'ranking.json'}: all windows"]

    return Figure(plan, draw)


def search_windows(args: ModelArgs, sampling: dict[str, Any]) -> SearchedWindows:
    """Predict and measure windows of all episodes. sampling: seed, steps and mode."""
    model = open_study_model(args)
    parts = map_windows(
        lambda windows: _measure(windows, **sampling), args, model, GIVEN + PREDICTED, STRIDE
    )
    return _concat([part for of_game in parts.values() for part in of_game])


@torch.inference_mode()
def _measure(windows: StudyWindows, *, seed: int, **sampling: Any) -> SearchedWindows:
    """Measure a batch of windows."""
    frames_BTCHW, actions_BT, model = windows.frames_BTCHW, windows.actions_BT, windows.model
    given = frames_BTCHW[:, :GIVEN]
    generator = torch.Generator(model.device).manual_seed(seed + windows.number)
    predicted = model.generate(given, actions_BT, generator=generator, **sampling).float()
    shown, entropies = torch.cat([given, predicted], 1).clamp(0, 1), []
    for last in range(GIVEN, GIVEN + PREDICTED):
        # All frames after the given ones are masked. A short attention window begins later.
        first = max(0, last + 1 - model.cfg.frames)
        query = shown[:, first : first + GIVEN], actions_BT[:, first:last]
        entropies.append(model.future_token_entropy(*query))
    return SearchedWindows(
        windows.sessions,
        windows.starts,
        windows.frames_BTHWC.cpu(),
        (predicted.clamp(0, 1) * 255).round().byte().movedim(2, -1).cpu(),
        torch.stack(entropies, 1).float().cpu(),
        frame_psnr(frames_BTCHW[:, GIVEN:], predicted).cpu(),
        new_share(frames_BTCHW[:, GIVEN - 1], frames_BTCHW[:, -1]).cpu(),
    )


def _concat(parts: Sequence[SearchedWindows]) -> SearchedWindows:
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(SearchedWindows)):
        of_parts = [getattr(part, name) for part in parts]
        if name in ("sessions", "starts"):
            values[name] = [value for part in of_parts for value in part]
        else:
            values[name] = torch.cat(of_parts)
    return SearchedWindows(**values)


def new_share(given_BCHW: Tensor, last_BCHW: Tensor) -> Tensor:
    """Compute the share (B,) of the patches of frames in [0, 1] that no place of the given has."""
    places_BPK = functional.unfold(given_BCHW, PATCH).transpose(1, 2)
    patches_BQK = functional.unfold(last_BCHW, PATCH, stride=PATCH).transpose(1, 2)
    nearest_BQ = torch.cdist(patches_BQK, places_BPK).amin(-1) / patches_BQK.shape[-1] ** 0.5
    return (nearest_BQ > UNLIKE / 255).float().mean(1)


def rank_windows(found: SearchedWindows) -> dict[str, Any]:
    """Return the windows by falling error as JSON data, with what correlates with the error."""
    quality_B, uncertainty_B, new_B = found.quality_B, found.uncertainty_B, found.new_B
    newest, drawn = set(found.newest().tolist()), found.worst()
    correlations = {
        "error_uncertainty": spearman(-quality_B, uncertainty_B),
        "error_new": spearman(-quality_B, new_B),
        "uncertainty_new": spearman(uncertainty_B, new_B),
    }
    ranking = [
        {
            "session": found.sessions[index],
            "start": found.starts[index],
            "psnr": quality_B[index].item(),
            "uncertainty": uncertainty_B[index].item(),
            "new": new_B[index].item(),
            "newest": index in newest,
            "drawn": drawn.index(index) + 1 if index in drawn else None,
        }
        for index in quality_B.argsort(stable=True).tolist()
    ]
    return {
        "windows": len(ranking),
        "given": GIVEN,
        "predicted": PREDICTED,
        "later": LATER,
        "spearman": correlations,
        "text": _describe_search(found, correlations),
        "ranking": ranking,
    }


def _describe_search(found: SearchedWindows, correlations: dict[str, float | None]) -> str:
    rho = {name: "-" if rho is None else f"{rho:.2f}" for name, rho in correlations.items()}
    newest = found.newest()
    return (
        f"{LABEL} predicted {PREDICTED} frames from {GIVEN} in {len(found.starts)} windows of "
        f"{len(set(found.sessions))} episodes. Drawn are, of the quarter whose last frame shows "
        f"most that the given one does not, those with the lowest PSNR of the last {LATER} frames, "
        f"one of each episode. That quarter has {found.quality_B[newest].mean():.2f} dB and an "
        f"uncertainty (Eq. 3-4) of {found.uncertainty_B[newest].mean():.3f}, all windows "
        f"{found.quality_B.mean():.2f} dB and {found.uncertainty_B.mean():.3f}. Spearman's rho of "
        f"error and uncertainty over all windows: {rho['error_uncertainty']}; of error and new "
        f"patches: {rho['error_new']}; of uncertainty and new patches: {rho['uncertainty_new']}."
    )


def draw_window(name: Path, found: SearchedWindows, index: int) -> str:
    """Write the real and the predicted frames of a window, and maps of the token entropy."""
    real = found.frames_BTHWC[index]
    predicted = torch.cat([real[:GIVEN], found.predicted_BFHWC[index]]).numpy()
    entropy_FN = found.entropy_BFN[index]
    entropy_TN = torch.cat([torch.zeros(GIVEN, entropy_FN.shape[1]), entropy_FN])
    side = math.isqrt(entropy_TN.shape[1])
    maps = entropy_TN.reshape(-1, side, side).numpy()
    high = float(found.entropy_BFN.max())
    rows = {"real": real.numpy(), LABEL: predicted, "uncertainty": heat_map(maps, predicted, high)}
    written = write_labelled_films(name, rows, SCALE, GIVEN)
    return (
        f"{written}: from above {', '.join(rows)}; episode {found.sessions[index]} from frame "
        f"{found.starts[index]}, {found.quality_B[index]:.2f} dB, uncertainty "
        f"{found.uncertainty_B[index]:.3f}, {found.new_B[index]:.0%} of the patches new"
    )
