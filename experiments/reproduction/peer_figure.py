"""Figure 20: another model's predictions of the window of figures 17 and 21 (App. F.5).

The other model is Jafar (Willi et al., 2024). No code or weight of it is here: it reads the window
and writes its predictions as `worldmodel.evaluation.external_predictions` describes.
"""

from pathlib import Path

import numpy as np

from envs.episodes.dataset import EpisodeReader, recorded_actions
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.runner import Context, StageContext, output_hash, run_stages
from experiments.reports.images import to_uint8_frames, write_labelled_films
from experiments.reproduction.coinrun_plans import base_play, basic_play
from experiments.reproduction.figures import PREDICTED, SCALE, Figure, most_moving
from experiments.reproduction.plans import TablePlan
from experiments.reproduction.stages import plan_stages
from worldmodel.config import CONTEXT
from worldmodel.data.batch import to_float_frames
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.evaluation.external_predictions import (
    ExternalPredictions,
    export_windows,
    window_folder,
)
from worldmodel.evaluation.window_predictions import Settings
from worldmodel.metrics import psnr

ROWS = ("Jafar", "Jafar, real frames given")
"""Names of the rows: predicted from the given frames, and made with the real ones at hand."""


def peer_strips(c: PipelineConfig, peers: tuple[Path, ...] = ()) -> Figure:
    """Return figure 20: real frames, and those in one or two folders of another model."""

    def draw(context: StageContext) -> list[str]:
        clips, window_id = open_strip_window(context, c)
        frames_THWC = clips.batch(np.array([window_id])).frames_BTHWC[0]
        truth_FCHW = to_float_frames(frames_THWC[CONTEXT:])
        rows, quality = {"real": frames_THWC.numpy()}, []
        for name, peer in zip(ROWS, peers, strict=False):
            made_FCHW = ExternalPredictions(peer).read_window(clips, window_id, PREDICTED)
            rows[name] = np.concatenate([rows["real"][:CONTEXT], to_uint8_frames(made_FCHW[None])])
            quality.append(f"{name} {psnr(truth_FCHW, made_FCHW):.2f} dB")
        written = write_labelled_films(context.out / "motion", rows, SCALE, CONTEXT)
        return [f"{written}: from above {', '.join(rows)}; PSNR: {'; '.join(quality)}"]

    return Figure(_plan(c), draw, [output_hash(peer) for peer in peers])


def play_and_export(folder: Path, root: Path, c: PipelineConfig, test_player: str) -> Path:
    """Play the test set of figure 20, and write its window for another model; return its folder."""
    context = Context(root, c)
    run_stages(plan_stages(c, _plan(c), test_player), context)
    return export_strip_window(folder, context, c)


def export_strip_window(folder: Path, context: Context, c: PipelineConfig) -> Path:
    """Write the window of figure 20 in the layout of `evaluate --export-windows`."""
    clips, window_id = open_strip_window(context, c)
    export_windows(
        folder,
        clips,
        np.array([window_id]),
        context=CONTEXT,
        delta_t=min(Settings.delta_t, PREDICTED),
        seed=c.seed,
        action_count=len(recorded_actions([str(uri) for uri in clips.uris])),
    )
    return window_folder(folder, clips, window_id)


def open_strip_window(context: Context, c: PipelineConfig) -> tuple[ClipDataset, int]:
    """Return the windows of the basic test set, and the number of the one that moves most."""
    data = context.path(f"data-{basic_play(c).name}")
    window = most_moving(EpisodeReader(data), c.games[0])
    cache, length = context.root / "cache", CONTEXT + PREDICTED
    clips = ClipDataset([data], cache, length=length, stride=1, split=None)
    sessions = [episode.session_id for episode in clips.episodes]
    index = sessions.index(window.episode.session_id)
    return clips, int(clips.first_windows(np.array([index]))[0]) + window.start


def _plan(c: PipelineConfig) -> TablePlan:
    """Return the plan of figure 17, without its model."""
    return TablePlan((), (), more_plays=(basic_play(c),), base=base_play(c), trains_base=False)
