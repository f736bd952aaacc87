"""Pictures of the pipeline's report: predictions, tokens, uncertainty, and agents' screens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from envs.episodes.dataset import EpisodeReader
from envs.utils.images import Frames, heat_map, png
from experiments.reports.images import (
    code_colours,
    film_strip,
    load_float_frames,
    montage,
    predict,
    token_map,
)
from experiments.reports.page import embed_picture
from experiments.reports.screens import ScreenStats, unique_to
from exploration.rollout.snapshots import HEAT_HIGH
from worldmodel import GenieReduxG
from worldmodel.config import CONTEXT, WINDOW
from worldmodel.evaluation.codebook_stats import static_token_fraction

MONTAGE_SCREENS, MONTAGE_COLUMNS = 24, 8
BUTTON_SIGNS = {
    "right": "\N{RIGHTWARDS ARROW}",
    "left": "\N{LEFTWARDS ARROW}",
    "up": "\N{UPWARDS ARROW}",
    "down": "\N{DOWNWARDS ARROW}",
    "jump": "jump",
    "none": "",
}
"""Signs of the words that names of actions consist of."""


@dataclass(frozen=True)
class Excerpt:
    """Frames of a held-out episode to predict.

    frames: WINDOW - 1 frames before frame `start` of the episode, then the shown ones.
    """

    game: str
    session: str
    start: int
    frames: Frames
    actions: NDArray[np.uint8]
    action_names: tuple[str, ...]

    @property
    def shown(self) -> Frames:
        """Context frames and frames to predict."""
        return self.frames[WINDOW - 1 :]

    @property
    def shown_actions(self) -> NDArray[np.uint8]:
        """Actions between the shown frames."""
        return self.actions[WINDOW - 1 :]


def choose_excerpt(folder: Path, game: str, length: int) -> Excerpt | None:
    """Return the excerpt at the upper quartile of motion in the held-out episodes of a game.

    The choice depends on the game only, never on how well a model predicts it. Returns None if all
    episodes are too short.
    """
    reader = EpisodeReader(folder)
    whole = length + WINDOW - 1
    candidates: list[tuple[float, int, int]] = []
    for index, name in enumerate(reader.games):
        if name != game or reader.num_frames(index) < whole:
            continue
        frames = reader[index].frames_THWC
        moving = (frames[1:] != frames[:-1]).any(-1).mean((1, 2))
        for start in range(0, len(frames) - whole + 1, max(length // 2, 1)):
            motion = moving[start + WINDOW - 1 : start + whole - 1].mean()
            candidates.append((float(motion), index, start))
    if not candidates:
        return None
    _, index, start = sorted(candidates)[len(candidates) * 3 // 4]
    episode = reader[index]
    frames = episode.frames_THWC[start : start + whole]
    actions = episode.actions[start : start + whole - 1]
    return Excerpt(
        game, episode.session_id, start + WINDOW - 1, frames, actions, episode.action_names
    )


def film_rows(
    excerpt: Excerpt,
    models: Mapping[str, GenieReduxG],
    labels: Mapping[str, str],
    sampling: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], list[Frames]]:
    """Return the rows of a film strip for the page, and the frames that each model generated.

    The rows are the real frames, those of each model, and the first model's tokens and uncertainty
    of the real frames.
    """
    shown = excerpt.shown
    predicted = {
        name: predict(model, shown[:CONTEXT], excerpt.shown_actions, **sampling)
        for name, model in models.items()
    }
    base = next(iter(models.values()))
    colours = code_colours(base.tokenizer.codebook.detach().cpu().float().numpy())
    with torch.inference_mode():
        frames = load_float_frames(shown).to(base.device)
        tokens_Thw = base.tokenizer.encode(frames)[0].cpu().numpy()
    tokens = token_map(tokens_Thw, colours, shown.shape[1])
    entropy = heat_map(_token_entropies(base, excerpt), shown, HEAT_HIGH)
    rows = [
        ("real", "what happened", shown),
        *((labels[name], "predicted", frames) for name, frames in predicted.items()),
        ("tokens", "of what happened", tokens),
        ("uncertainty", "of the base model", entropy),
    ]
    pictures = [
        {"name": name, "note": note, "image": embed_picture(png(film_strip([frames], 2)))}
        for name, note, frames in rows
    ]
    return pictures, list(predicted.values())


def _token_entropies(model: GenieReduxG, excerpt: Excerpt) -> NDArray[np.float32]:
    """Return the token entropies (T, h, w) of the shown frames after four others each (Eq. 2)."""
    count = len(excerpt.shown)
    frames = torch.cat([load_float_frames(excerpt.frames[t : t + WINDOW]) for t in range(count)])
    frames = frames.to(model.device)
    actions_A = torch.from_numpy(excerpt.actions.astype(np.int64)).to(model.device)
    with torch.inference_mode():
        entropy_TN = model.token_entropy(frames, actions_A.unfold(0, WINDOW - 1, 1)[:count])
    side = round(entropy_TN.shape[1] ** 0.5)
    return np.asarray(entropy_TN.reshape(count, side, side).float().cpu().numpy())


@dataclass(frozen=True)
class CodeUse:
    """Codebook usage of a tokenizer on held-out frames.

    shares: share of the tokens of every code, descending. static, moving: share of the most
    frequent code among patches that did not change, or did, since the frame before (Sec. 5).
    """

    shares: list[float]
    perplexity: float
    static: float
    moving: float


def count_code_use(
    model: GenieReduxG, folders: Sequence[Path], length: int, clips: int = 24
) -> CodeUse:
    """Count the codes of up to `clips` evenly spread clips of each game in each folder."""
    chosen: list[torch.Tensor] = []
    for folder in folders:
        reader = EpisodeReader(folder)
        for game in dict.fromkeys(reader.games):
            episodes = [
                reader[index].frames_THWC for index, name in enumerate(reader.games) if name == game
            ]
            parts = [
                episode[t : t + length]
                for episode in episodes
                for t in range(0, len(episode) - length + 1, length)
            ]
            chosen += map(load_float_frames, parts[:: max(len(parts) // clips, 1)][:clips])
    frames_BTCHW = torch.cat(chosen)
    with torch.inference_mode():
        on_device = (part.to(model.device) for part in frames_BTCHW.split(8))
        tokens = torch.cat([model.tokenizer.encode(part).cpu() for part in on_device])
    counts = torch.bincount(tokens.flatten(), minlength=model.cfg.tokenizer.codes).double()
    shares = (counts / counts.sum()).sort(descending=True).values
    perplexity = torch.special.entr(shares).sum().exp().item()
    return CodeUse(shares.tolist(), perplexity, **static_token_fraction(tokens, frames_BTCHW))


def column_heads(excerpt: Excerpt) -> list[dict[str, str]]:
    """Return the column heads of a film strip: number of steps ahead and button of each frame.

    The first and the last step are highlighted, because the tables report their metrics.
    """
    heads = []
    last = len(excerpt.shown) - CONTEXT
    signs = [
        " ".join(BUTTON_SIGNS.get(word, word) for word in name.replace("+", " ").split())
        for name in excerpt.action_names
    ]
    for index in range(len(excerpt.shown)):
        ahead = index - CONTEXT + 1
        kind = "given" if ahead < 1 else "reported" if ahead in (1, last) else "predicted"
        button = signs[excerpt.shown_actions[index - 1]] if index else ""
        text = f"+{ahead}" if ahead > 0 else "given"
        heads.append({"text": text, "kind": kind, "button": button})
    return heads


def screen_montage(
    name: str, own: ScreenStats, others: Sequence[ScreenStats], others_name: str
) -> dict[str, Any]:
    """Return caption and picture of the screens that an agent saw and none of the others did."""
    total = len(own.ids.difference(*(other.ids for other in others)))
    screens = unique_to(own, others, MONTAGE_SCREENS)
    caption = f"No screen that only the {name} saw"
    if total:
        caption = f"{total:,} screens only the {name} saw (not in {others_name})"
    if len(screens) < total:
        caption += f"; the {len(screens)} most different of them"
    image = embed_picture(png(montage(screens, MONTAGE_COLUMNS))) if screens else None
    return {"caption": f"{caption}.", "image": image}
