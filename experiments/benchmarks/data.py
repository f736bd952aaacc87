"""Benchmarks of data: playing and storing episodes, loading clips, opening a large data set."""

import itertools
import multiprocessing
import os
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import ray
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import envs
from envs.collect.collector import collect
from envs.collect.policies import RandomPolicy
from envs.collect.worker import CollectWorker, EpisodeKey, play_episode
from envs.episodes import manifest
from envs.episodes.compact import compact
from envs.episodes.dataset import EpisodeReader
from envs.episodes.frame_codec import decode_frames, encode_frames
from envs.episodes.shards import SessionRecord, Shard, write_shard
from experiments.benchmarks.common import Args, Row, cpu_seconds, median_of
from worldmodel.data import arrow_cache
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.data.loader import ClipLoader

DATA_GAMES = (
    "Airstriker-Genesis",
    "Kangaroo-Atari2600",
    "Hero-Atari2600",
    "MontezumaRevenge-Atari2600",
    "Frostbite-Atari2600",
    "PrivateEye-Atari2600",
    "ElevatorAction-Atari2600",
    "Adventure-Atari2600",
)
"""Games for the measurements of stored data if none are given."""
LENGTH = 16
BATCH = 112


def measure_collection(args: Args, scratch: Path) -> Iterator[Row]:
    """Measure stored frames per CPU-second against bare loops, and two workers against one."""
    row = partial(Row, "collect")
    for game in args.games:
        env = envs.make(game)
        try:
            stored_rate(env, scratch / "stored", game, -1, 20)  # one-time loading
            # Measured in turn, so that the load of the machine affects all of them.
            rates = [
                (
                    core_rate(env, number, args.steps),
                    bare_rate(env, number, args.steps),
                    stored_rate(env, scratch / "stored", game, number, args.steps),
                )
                for number in range(args.repeats)
            ]
        finally:
            env.close()
        core, bare, stored = np.median(rates, axis=0).tolist()
        name = f"{game}: stored frames per CPU-second"
        baseline = "stable-retro's step, frame skip, maximum, resize"
        yield row(name, stored, "/s", baseline, bare, 0.95)
        yield row("the same", stored, "/s", "its core alone, without reward and game over", core)
    game = args.games[0]
    medians = worker_rates(game, args.steps, args.repeats, scratch / "workers")
    (one, one_cpu), (two, two_cpu) = medians
    name = f"{game}: frames stored by two workers, wall time"
    yield row(name, two, "/s", "one worker", one, 1.9)
    name = "the same, per CPU-second of a worker"
    yield row(name, two_cpu, "/s", "one worker", one_cpu, 0.95)


def bare_rate(env: Any, seed: int, steps: int) -> float:
    """Return frames per CPU-second of a plain loop.

    It makes four steps of stable-retro, takes the maximum of the last two screens and resizes it.
    """
    game = env.unwrapped
    if not hasattr(game, "_emulator_env"):
        return core_rate(env, seed, steps)
    emulator, presses = game._emulator_env, game._presses

    def step(action: int) -> Any:
        screens = [emulator.step(presses[action])[0] for _ in range(game.frame_skip)]
        return shrink(np.maximum(*screens[-2:]), game.size)

    return play_rate(env, step, seed, steps)


def core_rate(env: Any, seed: int, steps: int) -> float:
    """Return frames per CPU-second of the emulator core alone, with maximum and resizing."""
    game = env.unwrapped
    if not hasattr(game, "_emulator_env"):

        def step(action: int) -> None:
            if env.step(np.int64(action))[2]:
                env.reset(seed=0)

        return play_rate(env, step, seed, steps)
    emulator, presses = game._emulator_env.em, game._presses

    def emulate(action: int) -> Any:
        emulator.set_button_mask(presses[action], 0)
        for _ in range(game.frame_skip - 1):
            emulator.step()
        previous = emulator.get_screen()
        emulator.step()
        return shrink(np.maximum(previous, emulator.get_screen()), game.size)

    return play_rate(env, emulate, seed, steps)


def play_rate(env: Any, step: Callable[[int], Any], seed: int, steps: int) -> float:
    """Return steps per CPU-second with random actions; their frames are kept in memory."""
    env.reset(seed=0)
    actions = np.random.default_rng(seed).integers(5, size=steps).tolist()
    return steps / cpu_seconds(lambda: [step(action) for action in actions])


def shrink(screen_HWC: Any, size: int) -> Any:
    """Return the resized screen without black bars."""
    height, width = screen_HWC.shape[:2]
    scale = size / max(height, width)
    shape = round(width * scale), round(height * scale)
    return cv2.resize(screen_HWC, shape, interpolation=cv2.INTER_AREA)


def stored_rate(env: Any, folder: Path, game: str, seed: int, steps: int) -> float:
    """Return frames per CPU-second that are played, compressed and written, and verify them."""
    seconds, frames = 0.0, 0
    while frames < steps:
        key = EpisodeKey(game, "random", seed, frames)
        started = time.process_time()
        episode = play_episode(env, RandomPolicy(), key, steps=steps)
        encoded = episode.encode()
        write_shard(folder, [encoded], key.id)
        seconds += time.process_time() - started
        frames += episode.num_frames
        if not np.array_equal(encoded.decode().frames_THWC, episode.frames_THWC):
            raise AssertionError(f"{game}: stored frames differ from those played")
    return frames / seconds


def worker_rates(game: str, steps: int, repeats: int, folder: Path) -> list[list[float]]:
    """Return frames per second and per CPU-second of one warm worker, then of two."""
    options = (str(folder.resolve()), RandomPolicy, steps)
    workers: list[Any] = [ray.remote(num_cpus=1)(CollectWorker).remote(*options) for _ in range(2)]
    keys = (EpisodeKey(game, "random", 0, episode) for episode in itertools.count())

    def play(pool: list[Any]) -> tuple[float, float]:
        started = time.perf_counter()
        played = ray.get([worker.play.remote(next(keys)) for _ in range(2) for worker in pool])
        seconds = time.perf_counter() - started
        frames = sum(record.num_frames for item in played for record in item.shard.sessions)
        return frames / seconds, frames / sum(item.cpu_seconds for item in played)

    try:
        play(workers)
        rates = [(play(workers[:1]), play(workers)) for _ in range(repeats)]
    finally:
        for worker in workers:
            ray.kill(worker)
    medians: list[list[float]] = np.median(rates, axis=0).tolist()
    return medians


def measure_loading(args: Args, scratch: Path) -> Iterator[Row]:
    """Measure random clips of 16 frames per CPU-second, bytes per frame, and a large data set."""
    row, at_most = partial(Row, "windows"), partial(Row, "windows", target=1, at_most=True)
    data = scratch / "windows"
    games = DATA_GAMES if args.games == Args.games else args.games
    collect(games, data, episodes=4, steps=args.steps, progress=False)
    yield at_most(f"stored frame, {len(games)} games", frame_bytes(data), "B", "goal", 150)
    compact(str(data), recompress=True)
    yield at_most("the same, merged and recompressed", frame_bytes(data), "B", "goal", 150)
    reader = EpisodeReader(data)
    decoding = median_of(args.repeats, decode_clips(reader))
    name = "clips per CPU-second, from compressed episodes"
    yield row(name, decoding, "/s", "goal", 9_000, 1)
    clips = ClipDataset([data], scratch / "cache", length=LENGTH, split=None)
    loading = median_of(args.repeats, load_batches(ClipLoader(clips, BATCH), 30))
    name = f"clips per CPU-second, in batches of {BATCH}"
    yield row(name, loading, "/s", "goal", 10_000, 1)
    pngs = median_of(args.repeats, load_batches(png_loader(reader, scratch / "png"), 2))
    yield row("the same", loading, "/s", "torch DataLoader over PNG files", pngs, 10)
    seconds, megabytes = open_large(scratch / "large")
    yield at_most("opening 10 million clips: time", seconds * 1e3, "ms", "goal", 1_000)
    yield at_most("opening 10 million clips: memory", megabytes, "MB", "goal", 100)


def frame_bytes(data: Path) -> float:
    """Return the bytes of a data set's files per frame."""
    reader = EpisodeReader(data)
    stored = sum({shard.path: shard.bytes for shard in reader.shards}.values())
    return stored / sum(record.num_frames for record in reader.records)


def decode_clips(reader: EpisodeReader) -> Callable[[], float]:
    """Return a measurement of random clips per CPU-second, decoded from stored episodes."""
    encoded = map(reader.encoded, range(len(reader)))
    episodes = [episode for episode in encoded if episode.num_frames >= LENGTH]
    generator = np.random.default_rng(0)

    def measure() -> float:
        chosen = [episodes[index] for index in generator.integers(len(episodes), size=2_000)]
        clips = [(e, int(generator.integers(e.num_frames - LENGTH + 1))) for e in chosen]

        def decode() -> None:
            for episode, start in clips:
                size = {"height": episode.height, "width": episode.width, "chunk": episode.chunk}
                decode_frames(episode.chunks, start, start + LENGTH, **size)

        return len(clips) / cpu_seconds(decode)

    return measure


def load_batches(batches: Iterator[Any], count: int) -> Callable[[], float]:
    """Return a measurement of clips per CPU-second that come in batches."""
    next(batches)
    return lambda: count * BATCH / cpu_seconds(lambda: [next(batches) for _ in range(count)])


def png_loader(reader: EpisodeReader, folder: Path) -> Iterator[Any]:
    """Yield batches of the baseline: a PNG file per frame, read by torch's DataLoader."""
    starts: list[tuple[Path, int]] = []
    for index in range(0, len(reader), 4):  # one episode of each game is enough
        episode = reader[index]
        files = folder / episode.session_id
        files.mkdir(parents=True)
        for number, frame in enumerate(episode.frames_THWC):
            Image.fromarray(frame).save(files / f"{number:06}.png")
        starts += [(files, start) for start in range(episode.num_frames - LENGTH + 1)]

    class PngWindows(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(starts)

        def __getitem__(self, number: int) -> torch.Tensor:
            files, start = starts[number]
            names = [f"{frame:06}.png" for frame in range(start, start + LENGTH)]
            frames = [np.asarray(Image.open(files / name)) for name in names]
            return torch.from_numpy(np.stack(frames))

    def endless() -> Iterator[Any]:
        while True:
            yield from DataLoader(PngWindows(), BATCH, shuffle=True)

    return endless()


def open_large(folder: Path) -> tuple[float, float]:
    """Return the CPU-seconds and MB of memory for opening a cached set of ten million clips."""
    write_large(folder, episodes=10_000, frames=1_000 + LENGTH - 1)
    # A new process, in which nothing else allocates or frees memory meanwhile.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        windows, seconds, memory = pool.submit(_open_clips, folder).result()
    if windows != 10_000_000:
        raise AssertionError(f"{windows} clips are not ten million")
    return seconds, memory / 1e6


def write_large(folder: Path, episodes: int, frames: int) -> None:
    """Write a manifest of many episodes and their local copy; all have the same black frames."""
    ids = [f"{number:016x}" for number in range(episodes)]
    shards = {}
    for i in ids:
        path = f"env=Counting/{i}"
        shards[path] = Shard(path, 1, "", (SessionRecord(i, "Counting", "random", frames),))
    large = manifest.Manifest(shards, {"Counting": dict.fromkeys(ids, False)})
    large.save(folder)

    blob = encode_frames(np.zeros((32, 64, 64, 3), np.uint8))[0]
    blobs, actions = [blob] * -(-frames // 32), bytes(frames - 1)
    columns = {"game": "Counting", "validation": False, "height": 64, "width": 64, "chunk": 32}
    columns |= {"actions": actions, "actions_crc": zlib.crc32(actions)}
    columns |= {"frames": blobs, "frames_crc": [zlib.crc32(blob)] * len(blobs)}
    schema = arrow_cache.SCHEMA
    with pa.ipc.new_file(arrow_cache.cache_path(folder, large.hash()), schema) as writer:
        for first in range(0, episodes, 1_000):
            rows = [{"session_id": i, **columns} for i in ids[first : first + 1_000]]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema), {"skipped": "{}"})


def _open_clips(folder: Path) -> tuple[int, float, int]:
    """Return the number of clips, CPU-seconds and additional bytes of opening a data set."""
    before, started = resident_bytes(), time.process_time()
    clips = ClipDataset([folder], folder, length=LENGTH)
    return len(clips), time.process_time() - started, resident_bytes() - before


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
