"""Pictures of the report: predictions, tokens, uncertainty, and screens of the agents."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from envs.controls import ACTIONS
from envs.episodes.dataset import EpisodeReader
from envs.utils.images import Frames, gif, heat_map, png
from experiments.reports.images import (
    code_colours,
    film_strip,
    load_float_frames,
    montage,
    predict,
    token_map,
)
from experiments.reports.screens import ScreenStats, unique_to
from exploration.reward.token_entropy import CONTEXT, WINDOW
from exploration.rollout.snapshots import HEAT_HIGH
from worldmodel import GenieReduxG
from worldmodel.evaluation.codebook_stats import static_token_fraction

MONTAGE_SCREENS, MONTAGE_COLUMNS = 24, 8


@dataclass(frozen=True)
class Picture:
    """A picture for the page: its bytes in base64 and its size in pixels."""

    data: str
    width: int
    height: int


def png_picture(pixels: NDArray[np.uint8]) -> Picture:
    """Return pixels as a PNG."""
    return Picture(base64.b64encode(png(pixels)).decode(), pixels.shape[1], pixels.shape[0])


def gif_picture(panels: Sequence[Frames], scale: int) -> Picture:
    """Return a GIF of films next to each other."""
    data = gif(panels, scale, CONTEXT)
    width, height = Image.open(io.BytesIO(data)).size
    return Picture(base64.b64encode(data).decode(), width, height)


@dataclass(frozen=True)
class Excerpt:
    """Frames of a held-out episode to predict.

    frames: WINDOW - 1 frames from before `start`, then the ones to show.
    """

    game: str
    session: str
    start: int
    frames: Frames
    actions: NDArray[np.uint8]

    @property
    def shown(self) -> Frames:
        """Given frames and frames to predict."""
        return self.frames[WINDOW - 1 :]

    @property
    def shown_actions(self) -> NDArray[np.uint8]:
        """Actions between the shown frames."""
        return self.actions[WINDOW - 1 :]


def choose_excerpt(folder: Path, game: str, length: int) -> Excerpt | None:
    """Return the excerpt of a game's held-out episodes at the upper quartile of motion.

    It is chosen by what the game shows, never by how well a model predicts it. Returns None if
    all episodes are too short.
    """
    reader = EpisodeReader(folder)
    whole = length + WINDOW - 1
    found: list[tuple[float, int, int]] = []
    for index, name in enumerate(reader.games):
        if name != game or reader.num_frames(index) < whole:
            continue
        frames = reader[index].frames_THWC
        moving = (frames[1:] != frames[:-1]).any(-1).mean((1, 2))
        for start in range(0, len(frames) - whole + 1, max(length // 2, 1)):
            motion = moving[start + WINDOW - 1 : start + whole - 1].mean()
            found.append((float(motion), index, start))
    if not found:
        return None
    _, index, start = sorted(found)[len(found) * 3 // 4]
    episode = reader[index]
    return Excerpt(
        game,
        episode.session_id,
        start + WINDOW - 1,
        episode.frames_THWC[start : start + whole],
        episode.actions[start : start + whole - 1],
    )


def film(
    excerpt: Excerpt,
    models: Mapping[str, GenieReduxG],
    labels: Mapping[str, str],
    sampling: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, Frames]]:
    """Return the rows of a film strip for the page, and the frames that each model generated.

    Rows: the real frames, those of each model, and the base model's tokens and uncertainty of the
    real frames.
    """
    predicted = {
        name: predict(model, excerpt.shown[:CONTEXT], excerpt.shown_actions, **sampling)
        for name, model in models.items()
    }
    base = next(iter(models.values()))
    colours = code_colours(base.tokenizer.codebook.detach().cpu().float().numpy())
    tokens = token_map(frame_tokens(base, excerpt.shown), colours, excerpt.shown.shape[1])
    entropy_map = heat_map(uncertainty(base, excerpt), excerpt.shown, HEAT_HIGH)
    rows = [("real", "what happened", excerpt.shown)]
    rows += [(labels[name], "predicted", frames) for name, frames in predicted.items()]
    rows.append(("tokens", "of what happened", tokens))
    rows.append(("uncertainty", "of the base model", entropy_map))
    strip = [
        {"name": name, "note": note, "image": png_picture(film_strip([row], 2))}
        for name, note, row in rows
    ]
    return strip, predicted


def frame_tokens(model: GenieReduxG, frames_THWC: Frames) -> NDArray[np.int64]:
    """Return the tokenizer's tokens of a clip, (T, h, w)."""
    with torch.inference_mode():
        return np.asarray(model.tokenizer.encode(load_float_frames(frames_THWC))[0].cpu().numpy())


def uncertainty(model: GenieReduxG, excerpt: Excerpt) -> NDArray[np.float32]:
    """Return the token entropy of every shown frame given the four before it (Eq. 2).

    The result is (T, h, w) in [0, 1].
    """
    count = len(excerpt.shown)
    frames = torch.cat([load_float_frames(excerpt.frames[t : t + WINDOW]) for t in range(count)])
    taken = torch.from_numpy(excerpt.actions.astype(np.int64))
    actions = torch.stack([taken[t : t + WINDOW - 1] for t in range(count)])
    with torch.inference_mode():
        entropy_TN = model.token_entropy(frames, actions)
    side = round(entropy_TN.shape[1] ** 0.5)
    return np.asarray(entropy_TN.reshape(count, side, side).float().cpu().numpy())


@dataclass(frozen=True)
class CodeUse:
    """Codebook usage of a tokenizer on held-out frames.

    shares: share of the tokens of every code, falling. static, moving: share of the most frequent
    code on patches that did not change, or did, since the frame before (Sec. 5).
    """

    shares: tuple[float, ...]
    perplexity: float
    static: float
    moving: float

    @property
    def used(self) -> int:
        """Number of codes that occur."""
        return sum(share > 0 for share in self.shares)


def code_use(model: GenieReduxG, folders: Sequence[Path], length: int, clips: int = 24) -> CodeUse:
    """Count the codes of up to `clips` clips of each game in each folder, evenly spread."""
    chosen = []
    for folder in folders:
        reader = EpisodeReader(folder)
        for game in dict.fromkeys(reader.games):
            episodes = [
                reader[index].frames_THWC for index, name in enumerate(reader.games) if name == game
            ]
            starts = [
                (episode, t)
                for episode in episodes
                for t in range(0, len(episode) - length + 1, length)
            ]
            spread = starts[:: max(len(starts) // clips, 1)][:clips]
            chosen += [load_float_frames(episode[t : t + length]) for episode, t in spread]
    frames_BTCHW = torch.cat(chosen)
    with torch.inference_mode():
        tokens = torch.cat([model.tokenizer.encode(part) for part in frames_BTCHW.split(8)])
    counts = torch.bincount(tokens.flatten(), minlength=model.cfg.tokenizer.codes).double()
    shares = (counts / counts.sum()).sort(descending=True).values
    entropy = -(shares * shares.clamp_min(1e-300).log()).sum().item()
    background = static_token_fraction(tokens, frames_BTCHW)
    return CodeUse(
        tuple(shares.tolist()), math.exp(entropy), background["static"], background["moving"]
    )


BUTTON_SIGNS = {
    "right": "\N{RIGHTWARDS ARROW}",
    "left": "\N{LEFTWARDS ARROW}",
    "up": "\N{UPWARDS ARROW}",
    "down": "\N{DOWNWARDS ARROW}",
    "jump": "jump",
}


def column_heads(excerpt: Excerpt) -> list[dict[str, str]]:
    """Return the film strip's column heads: number of steps ahead and button of each frame.

    The first and the last step are marked, because the tables give their metrics.
    """
    heads = []
    last = len(excerpt.shown) - CONTEXT
    for place in range(len(excerpt.shown)):
        ahead = place - CONTEXT + 1
        kind = "given" if ahead < 1 else "told" if ahead in (1, last) else "made"
        button = BUTTON_SIGNS[ACTIONS[excerpt.shown_actions[place - 1]]] if place else ""
        text = f"+{ahead}" if ahead > 0 else "given"
        heads.append({"text": text, "kind": kind, "button": button})
    return heads


def screen_montages(
    random: ScreenStats, explored: ScreenStats, random_data: Sequence[ScreenStats]
) -> list[dict[str, Any]]:
    """Return the screens that only one of the two agents saw, for each of them.

    random_data: all data sets of the random agent in this run.
    """
    return [
        _montage_of("explorer", explored, random_data, "any random play of this run"),
        _montage_of("random agent", random, [explored], "the explorer's data"),
    ]


def _montage_of(
    name: str, here: ScreenStats, others: Sequence[ScreenStats], versus: str
) -> dict[str, Any]:
    total = len(here.ids.difference(*(seen.ids for seen in others)))
    screens = unique_to(here, others, MONTAGE_SCREENS)
    caption = f"No screen that only the {name} saw"
    if total:
        caption = f"{total:,} screens only the {name} saw (not in {versus})"
    if len(screens) < total:
        caption += f"; the {len(screens)} most different of them"
    image = png_picture(montage(screens, MONTAGE_COLUMNS)) if screens else None
    return {"caption": caption + ".", "image": image}
