"""Making of the material: each model predicts the clips of its samples, one file each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange

from envs.utils.atomic_io import file_sha256, read_json, write_atomic, write_json_atomic
from envs.utils.errors import InputError
from envs.utils.images import Frames, png
from envs.utils.progress import Bar, console, progress
from envs.utils.storage import lock
from experiments.arguments import default_threads
from experiments.reports.images import predict
from experiments.studies.people.arguments import TRUTH, PeopleMakeArgs
from experiments.studies.people.material import (
    PEOPLE_MANIFEST,
    PLAN,
    Sample,
    load_material,
    make_key,
    plan_json,
)
from experiments.studies.people.plan import HeldOutEpisodes, plan_samples
from worldmodel.models.saved_model import read_model_config

if TYPE_CHECKING:
    from worldmodel import WorldModel


@dataclass(frozen=True)
class ShownClip:
    """One file to make: the clip of a model, or of the recording, in a sample."""

    file: str
    model: str
    sample: Sample


def run(args: PeopleMakeArgs) -> None:
    """Make the missing clips and, at the end, the manifest."""
    torch.set_num_threads(args.threads or default_threads())
    models = _describe_models(args)
    data = HeldOutEpisodes(args.data)
    samples = plan_samples(args, data)
    plan = plan_json(_settings(args, data), models, samples)
    folder_lock = lock(args.out)
    try:
        _check_continues_plan(args, plan)
        clips = {
            file: ShownClip(file, model, sample)
            for sample in samples
            for file, model in zip(sample.clips, sample.models, strict=True)
        }
        if not (args.out / PEOPLE_MANIFEST).exists():
            make_key(args.out)
            _make_clips(args, data, list(clips.values()))
            files = {file: file_sha256(args.out / file) for file in sorted(clips)}
            write_json_atomic(args.out / PEOPLE_MANIFEST, {**plan, "files": files})
        load_material(args.out)
    finally:
        folder_lock.close()
    console.print(
        f"{args.out}: {len(samples)} samples of {len(clips)} clips; "
        f"next: autoexplore study people serve --out {args.out}"
    )


def _describe_models(args: PeopleMakeArgs) -> dict[str, dict[str, str]]:
    """Return path and hash of each model. Raises InputError for two with the same weights."""
    models: dict[str, dict[str, str]] = {}
    owners: dict[str, str] = {}
    for name, path in args.model_paths().items():
        read_model_config(path)  # verifies the sha256 of the weights that the manifest holds
        sha256 = file_sha256(path / "manifest.json")
        if sha256 in owners:
            raise InputError(
                f"--models: {owners[sha256]} and {name} are the same model: give different ones"
            )
        owners[sha256] = name
        models[name] = {"path": str(path), "sha256": sha256}
    return models


def _settings(args: PeopleMakeArgs, data: HeldOutEpisodes) -> dict[str, Any]:
    """Return what the clips depend on, besides the models."""
    names = ("samples", "context", "frames", "starts", "most_motion", "fps", "sampling_steps")
    settings = {name: getattr(args, name) for name in (*names, "temperature", "seed")}
    folders = [str(folder) for folder in args.data]
    return {**settings, "data": dict(zip(folders, data.manifests, strict=True))}


def _check_continues_plan(args: PeopleMakeArgs, plan: dict[str, Any]) -> None:
    """Write the plan. Raises InputError if the folder holds another one, or something else."""
    file = args.out / PLAN
    if file.exists():
        held = read_json(file)
        for name, value in plan.items():
            if held.get(name) != value:
                raise InputError(f"{args.out} holds a study with other {name}: give another --out")
        return
    if any(not path.name.startswith(".") for path in args.out.iterdir()):
        raise InputError(f"{args.out} holds something else than a study: give another --out")
    write_json_atomic(file, plan)


def _make_clips(args: PeopleMakeArgs, data: HeldOutEpisodes, clips: Sequence[ShownClip]) -> None:
    """Write the missing clips, model by model."""
    missing = [clip for clip in clips if not (args.out / clip.file).exists()]
    with progress("clips", len(clips), len(clips) - len(missing)) as bar:
        for name, path in {TRUTH: None, **args.model_paths()}.items():
            own = [clip for clip in missing if clip.model == name]
            if own:
                model = None if path is None else args.load_model(path)
                _make_clips_of(args, data, own, model, bar)


def _make_clips_of(
    args: PeopleMakeArgs,
    data: HeldOutEpisodes,
    clips: Sequence[ShownClip],
    model: "WorldModel | None",
    bar: Bar,
) -> None:
    """Write the clips of one model, or of the recording."""
    for clip in clips:
        frames = _clip_frames(args, data, clip.sample, model)
        write_atomic(args.out / clip.file, png(rearrange(frames, "t h w c -> h (t w) c")))
        bar.advance(note=f"{clip.model} {clip.sample.game}")


def _clip_frames(
    args: PeopleMakeArgs, data: HeldOutEpisodes, sample: Sample, model: "WorldModel | None"
) -> Frames:
    """Return the frames of a clip, given ones included."""
    episode = data.episode(sample.session)
    start, end = sample.start, sample.start + args.frames
    if model is None:
        return episode.frames_THWC[start:end]
    context, actions = args.context, episode.actions[start : end - 1]
    if sample.study == "action":
        context = 1
        held = episode.action_names.index(sample.action)
        actions = np.full(args.frames - 1, held, np.uint8)
    driven = model.for_game(sample.game)
    driven.check_action_names(episode.action_names, "the data have")
    return predict(
        driven,
        episode.frames_THWC[start : start + context],
        actions,
        seed=sample.seed,
        steps=args.sampling_steps,
        temperature=args.temperature,
        mode="autoregressive",
    )
