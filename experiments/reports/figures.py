"""The pictures of the report: what the models predict, their tokens, their doubts, and the screens the agents saw."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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
from exploration.rollout.snapshots import HEAT_HIGH

if TYPE_CHECKING:
    from worldmodel import GenieReduxG


CONTEXT = 2
SCORED = 5
"""Frames of the window that a frame's uncertainty is asked with (eq. 2)."""
MONTAGE_SCREENS, MONTAGE_COLUMNS = 24, 8


@dataclass(frozen=True)
class Picture:
    """A picture for the page: its bytes in base64 and its size in pixels."""

    data: str
    width: int
    height: int


def png_picture(pixels: NDArray[np.uint8]) -> Picture:
    return Picture(base64.b64encode(png(pixels)).decode(), pixels.shape[1], pixels.shape[0])


def gif_picture(panels: Sequence[Frames], scale: int, context: int) -> Picture:
    from io import BytesIO

    from PIL import Image

    data = gif(panels, scale, context)
    width, height = Image.open(BytesIO(data)).size
    return Picture(base64.b64encode(data).decode(), width, height)


@dataclass(frozen=True)
class Window:
    """Frames of a held-out episode to predict. frames: SCORED - 1 frames from before the window, then the window."""

    game: str
    session: str
    start: int
    frames: Frames
    actions: NDArray[np.uint8]

    @property
    def shown(self) -> Frames:
        """The window alone: what is given and what is to be predicted."""
        return self.frames[SCORED - 1 :]

    @property
    def shown_actions(self) -> NDArray[np.uint8]:
        return self.actions[SCORED - 1 :]


def choose_window(folder: Path, game: str, length: int) -> Window | None:
    """A window of a game's held-out episodes in which much moves: the one at the upper quartile of motion.

    Chosen by what the game shows, never by how well a model predicts it. None where all episodes are too short.
    """
    from envs.episodes.dataset import EpisodeReader

    reader = EpisodeReader(folder)
    whole = length + SCORED - 1
    found: list[tuple[float, int, int]] = []
    for index, name in enumerate(reader.games):
        if name != game or reader.num_frames(index) < whole:
            continue
        frames = reader[index].frames_THWC
        moving = (frames[1:] != frames[:-1]).any(-1).mean((1, 2))
        for start in range(0, len(frames) - whole + 1, max(length // 2, 1)):
            found.append(
                (float(moving[start + SCORED - 1 : start + whole - 1].mean()), index, start)
            )
    if not found:
        return None
    _, index, start = sorted(found)[len(found) * 3 // 4]
    episode = reader[index]
    return Window(
        game,
        episode.session_id,
        start + SCORED - 1,
        episode.frames_THWC[start : start + whole],
        episode.actions[start : start + whole - 1],
    )


def film(
    window: Window,
    models: Mapping[str, "GenieReduxG"],
    labels: Mapping[str, str],
    sampling: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, Frames]]:
    """Rows of a film strip for the page, and the frames that each model made of the window.

    Rows: what happened, what each model predicted, the base model's tokens of what happened and its uncertainty.
    """
    made = {
        name: predict(model, window.shown[:CONTEXT], window.shown_actions, **sampling)
        for name, model in models.items()
    }
    base = next(iter(models.values()))
    colours = code_colours(base.tokenizer.codebook.detach().cpu().float().numpy())
    tokens = token_map(frame_tokens(base, window.shown), colours, window.shown.shape[1])
    doubt = heat_map(uncertainty(base, window), window.shown, HEAT_HIGH)
    rows = [("real", "what happened", window.shown)]
    rows += [(labels[name], "predicted", frames) for name, frames in made.items()]
    rows += [("tokens", "of what happened", tokens), ("uncertainty", "of the base model", doubt)]
    strip = [
        {"name": name, "note": note, "image": png_picture(film_strip([row], 2))}
        for name, note, row in rows
    ]
    return strip, made


def frame_tokens(model: "GenieReduxG", frames_THWC: Frames) -> NDArray[np.int64]:
    """The tokenizer's tokens of a clip, (T, h, w)."""
    import torch

    with torch.inference_mode():
        return np.asarray(model.tokenizer.encode(load_float_frames(frames_THWC))[0].cpu().numpy())


def uncertainty(model: "GenieReduxG", window: Window) -> NDArray[np.float32]:
    """Eq. 2 for every token of every shown frame, each asked with the four frames before it: (T, h, w) in [0, 1]."""
    import torch

    count = len(window.shown)
    frames = torch.cat([load_float_frames(window.frames[t : t + SCORED]) for t in range(count)])
    actions = torch.stack(
        [
            torch.from_numpy(window.actions[t : t + SCORED - 1].astype(np.int64))
            for t in range(count)
        ]
    )
    with torch.inference_mode():
        entropy_TN = model.token_entropy(frames, actions)
    side = round(entropy_TN.shape[1] ** 0.5)
    return np.asarray(entropy_TN.reshape(count, side, side).float().cpu().numpy())


@dataclass(frozen=True)
class CodeUse:
    """How a tokenizer uses its codes on held-out frames. shares: of the tokens, for every code, falling.
    static, moving: share of the commonest code on patches where nothing, or something, changed (section 5).
    """

    shares: tuple[float, ...]
    perplexity: float
    static: float
    moving: float

    @property
    def used(self) -> int:
        return sum(share > 0 for share in self.shares)


def code_use(
    model: "GenieReduxG", folders: Sequence[Path], length: int, windows: int = 24
) -> CodeUse:
    """Encode up to so many windows of each game of some folders, evenly spread, and count."""
    import torch

    from envs.episodes.dataset import EpisodeReader
    from worldmodel.evaluation.codebook_stats import static_token_fraction

    clips = []
    for folder in folders:
        reader = EpisodeReader(folder)
        for game in dict.fromkeys(reader.games):
            frames = [
                reader[index].frames_THWC for index, name in enumerate(reader.games) if name == game
            ]
            starts = [
                (e, t)
                for e, episode in enumerate(frames)
                for t in range(0, len(episode) - length + 1, length)
            ]
            chosen = starts[:: max(len(starts) // windows, 1)][:windows]
            clips += [
                load_float_frames(frames[episode][start : start + length])
                for episode, start in chosen
            ]
    frames_BTCHW = torch.cat(clips)
    with torch.inference_mode():
        tokens = torch.cat([model.tokenizer.encode(part) for part in frames_BTCHW.split(8)])
    counts = torch.bincount(tokens.flatten(), minlength=model.cfg.tokenizer.codes).double()
    shares = (counts / counts.sum()).sort(descending=True).values
    entropy = -(shares * shares.clamp_min(1e-300).log()).sum().item()
    background = static_token_fraction(tokens, frames_BTCHW)
    return CodeUse(
        tuple(shares.tolist()), math.exp(entropy), background["static"], background["moving"]
    )


PRESSED = {
    "right": "\N{RIGHTWARDS ARROW}",
    "left": "\N{LEFTWARDS ARROW}",
    "up": "\N{UPWARDS ARROW}",
}
PRESSED |= {"down": "\N{DOWNWARDS ARROW}", "jump": "jump"}


def times(window: Window, context: int) -> list[dict[str, str]]:
    """The film strip's column heads: frames given, then steps ahead, each with the button that led to its frame.

    The first step and the last are marked: they are told in the table.
    """
    from envs.controls import ACTIONS

    heads = []
    for place in range(len(window.shown)):
        ahead = place - context + 1
        kind = (
            "given"
            if ahead < 1
            else "told"
            if ahead in (1, len(window.shown) - context)
            else "made"
        )
        pressed = PRESSED[ACTIONS[window.shown_actions[place - 1]]] if place else ""
        heads.append(
            {"text": f"+{ahead}" if ahead > 0 else "given", "kind": kind, "pressed": pressed}
        )
    return heads


def screen_montages(
    random: ScreenStats, explored: ScreenStats, random_data: Sequence[ScreenStats]
) -> list[dict[str, Any]]:
    """Screens that only one of the two agents saw. random_data: everything the random agent saw in this run."""
    sides = []
    for name, here, others in (
        ("explorer", explored, random_data),
        ("random agent", random, [explored]),
    ):
        unseen = set().union(*(seen.ids for seen in others))
        total = len(here.ids - unseen)
        screens = unique_to(here, others, MONTAGE_SCREENS)
        versus = "any random play of this run" if name == "explorer" else "the explorer's data"
        caption = (
            f"Only the {name} saw {total:,} screens (not in {versus})"
            if total
            else f"None that only the {name} saw"
        )
        if len(screens) < total:
            caption += f"; the {len(screens)} most different of them"
        image = png_picture(montage(screens, MONTAGE_COLUMNS)) if screens else None
        sides.append({"caption": caption + ".", "image": image})
    return sides
