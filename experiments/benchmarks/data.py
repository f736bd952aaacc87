"""Benchmarks of data: playing and storing episodes, loading clips, opening a large data set."""

import multiprocessing
import os
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
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
from experiments.benchmarks.common import Args, Row, median_of
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


def collecting(args: Args, scratch: Path) -> Iterator[Row]:
    """Measure stored frames per CPU-second against bare loops, and two workers against one."""
    for game in args.games:
        env = envs.make(game)
        try:
            core, bare, stored = [], [], []
            stored_rate(env, scratch / "stored", game, -1, 20)  # one-time loading
            # Measured in turn, so that the load of the machine affects all of them.
            for number in range(args.repeats):
                core.append(core_rate(env, number, args.steps))
                bare.append(bare_rate(env, number, args.steps))
                stored.append(stored_rate(env, scratch / "stored", game, number, args.steps))
        finally:
            env.close()
        rate, plain, least = (statistics.median(rates) for rates in (stored, bare, core))
        name = f"{game}: stored frames per CPU-second"
        yield Row(
            "collect",
            name,
            rate,
            "/s",
            "stable-retro's step, frame skip, maximum, resize",
            plain,
            0.95,
        )
        yield Row(
            "collect", "the same", rate, "/s", "its core alone, without reward and game over", least
        )
    one, two, (one_cpu, two_cpu) = worker_rates(
        args.games[0], args.steps, args.repeats, scratch / "workers"
    )
    yield Row(
        "collect",
        f"{args.games[0]}: frames stored by two workers, wall time",
        two,
        "/s",
        "one worker",
        one,
        1.9,
    )
    yield Row(
        "collect",
        "the same, per CPU-second of a worker",
        two_cpu,
        "/s",
        "one worker",
        one_cpu,
        0.95,
    )


def bare_rate(env: Any, seed: int, steps: int) -> float:
    """Return frames per CPU-second of a plain loop.

    It makes four steps of stable-retro, takes the maximum of the last two screens and resizes it.
    """
    game = env.unwrapped
    if not hasattr(game, "_emulator_env"):
        return core_rate(env, seed, steps)
    env.reset(seed=0)
    plain, presses = game._emulator_env, game._presses
    frames = []
    started = time.process_time()
    for action in np.random.default_rng(seed).integers(5, size=steps).tolist():
        screens = [plain.step(presses[action])[0] for _ in range(game.frame_skip)]
        frames.append(shrink(np.maximum(*screens[-2:]), game.size))
    return steps / (time.process_time() - started)


def shrink(screen_HWC: Any, size: int) -> Any:
    """Return the resized screen without black bars."""
    height, width = screen_HWC.shape[:2]
    scale = size / max(height, width)
    return cv2.resize(
        screen_HWC, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA
    )


def core_rate(env: Any, seed: int, steps: int) -> float:
    """Return frames per CPU-second of the emulator core alone, with maximum and resizing."""
    game = env.unwrapped
    env.reset(seed=0)
    actions = np.random.default_rng(seed).integers(5, size=steps)
    if not hasattr(game, "_emulator_env"):  # a game without an emulator
        started = time.process_time()
        for action in actions:
            if env.step(np.int64(action))[2]:
                env.reset(seed=0)
        return steps / (time.process_time() - started)
    emulator, presses = game._emulator_env.em, game._presses
    frames = []
    started = time.process_time()
    for action in actions.tolist():
        emulator.set_button_mask(presses[action], 0)
        for _ in range(game.frame_skip - 1):
            emulator.step()
        before_last = emulator.get_screen()
        emulator.step()
        frames.append(shrink(np.maximum(before_last, emulator.get_screen()), game.size))
    return steps / (time.process_time() - started)


def stored_rate(env: Any, folder: Path, game: str, seed: int, steps: int) -> float:
    """Return frames per CPU-second that are played, compressed and written, and verify them."""
    seconds, frames = 0.0, 0
    while frames < steps:
        session = EpisodeKey(game, "random", seed, frames)
        started = time.process_time()
        episode = play_episode(env, RandomPolicy(), session, steps=steps)
        encoded = episode.encode()
        write_shard(folder, [encoded], session.id)
        seconds += time.process_time() - started
        frames += episode.num_frames
        if not np.array_equal(encoded.decode().frames_THWC, episode.frames_THWC):
            raise AssertionError(f"{game}: stored frames differ from those played")
    return frames / seconds


def worker_rates(
    game: str, steps: int, repeats: int, folder: Path
) -> tuple[float, float, tuple[float, float]]:
    """Return frames per second that one and two warm workers store, then both per CPU-second."""
    options = (str(folder.resolve()), RandomPolicy, steps)
    workers: list[Any] = [ray.remote(num_cpus=1)(CollectWorker).remote(*options) for _ in range(2)]
    episode = 0

    def play(pool: list[Any]) -> tuple[float, float]:
        nonlocal episode
        started, waiting = time.perf_counter(), []
        for _ in range(2):
            for worker in pool:
                waiting.append(worker.play.remote(EpisodeKey(game, "random", 0, episode)))
                episode += 1
        played = ray.get(waiting)
        frames = sum(record.num_frames for item in played for record in item.shard.sessions)
        return frames / (time.perf_counter() - started), frames / sum(
            item.cpu_seconds for item in played
        )

    try:
        play(workers)
        rates = [(play(workers[:1]), play(workers)) for _ in range(repeats)]
    finally:
        for worker in workers:
            ray.kill(worker)
    ones, twos = zip(*rates, strict=True)
    (one, one_cpu), (two, two_cpu) = (
        map(statistics.median, zip(*pairs, strict=True)) for pairs in (ones, twos)
    )
    return one, two, (one_cpu, two_cpu)


def windows(args: Args, scratch: Path) -> Iterator[Row]:
    """Measure random clips of 16 frames per CPU-second, bytes per frame, and a large data set."""
    data = scratch / "windows"
    games = DATA_GAMES if args.games == Args.games else args.games
    collect(games, data, episodes=4, steps=args.steps, progress=False)
    size = frame_bytes(data)
    yield Row(
        "windows", f"stored frame, {len(games)} games", size, "B", "goal", 150, 1, at_most=True
    )
    compact(str(data), recompress=True)
    yield Row(
        "windows",
        "the same, merged and recompressed",
        frame_bytes(data),
        "B",
        "goal",
        150,
        1,
        at_most=True,
    )
    reader = EpisodeReader(data)
    cutting = median_of(args.repeats, decode_clips(reader))
    yield Row(
        "windows", "clips per CPU-second, from compressed episodes", cutting, "/s", "goal", 9_000, 1
    )
    clips = ClipDataset([data], scratch / "cache", length=LENGTH, split=None)
    loading = median_of(args.repeats, load_batches(ClipLoader(clips, BATCH), 30))
    yield Row(
        "windows", f"clips per CPU-second, in batches of {BATCH}", loading, "/s", "goal", 10_000, 1
    )
    pngs = median_of(args.repeats, load_batches(png_loader(reader, scratch / "png"), 2))
    yield Row("windows", "the same", loading, "/s", "torch DataLoader over PNG files", pngs, 10)
    seconds, megabytes = open_large(scratch / "large")
    name = "opening 10 million clips"
    yield Row("windows", f"{name}: time", seconds * 1e3, "ms", "goal", 1_000, 1, at_most=True)
    yield Row("windows", f"{name}: memory", megabytes, "MB", "goal", 100, 1, at_most=True)


def frame_bytes(data: Path) -> float:
    """Return the bytes of a data set's files per frame."""
    reader = EpisodeReader(data)
    stored = sum(shard.bytes for shard in {shard.path: shard for shard in reader.shards}.values())
    return stored / sum(record.num_frames for record in reader.records)


def decode_clips(reader: EpisodeReader) -> Callable[[], float]:
    """Return a measurement of random clips per CPU-second, decoded from stored episodes."""
    episodes = [reader.encoded(index) for index in range(len(reader))]
    episodes = [episode for episode in episodes if episode.num_frames >= LENGTH]
    generator = np.random.default_rng(0)

    def measure() -> float:
        chosen = [episodes[place] for place in generator.integers(len(episodes), size=2_000)]
        places = [(e, int(generator.integers(e.num_frames - LENGTH + 1))) for e in chosen]
        started = time.process_time()
        for episode, start in places:
            shape = {"height": episode.height, "width": episode.width, "chunk": episode.chunk}
            decode_frames(episode.chunks, start, start + LENGTH, **shape)
        return len(places) / (time.process_time() - started)

    return measure


def load_batches(batches: Iterator[Any], count: int) -> Callable[[], float]:
    """Return a measurement of clips per CPU-second that come in batches."""
    next(batches)

    def measure() -> float:
        started = time.process_time()
        for _ in range(count):
            next(batches)
        return count * BATCH / (time.process_time() - started)

    return measure


def png_loader(reader: EpisodeReader, folder: Path) -> Iterator[Any]:
    """Yield batches of the baseline: a PNG file per frame, read by torch's DataLoader."""
    starts: list[tuple[Path, int]] = []
    for index in range(0, len(reader), 4):  # one episode of each game is enough
        episode = reader[index]
        place = folder / episode.session_id
        place.mkdir(parents=True)
        for number, frame in enumerate(episode.frames_THWC):
            Image.fromarray(frame).save(place / f"{number:06}.png")
        starts += [(place, start) for start in range(episode.num_frames - LENGTH + 1)]

    class Windows(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(starts)

        def __getitem__(self, number: int) -> torch.Tensor:
            place, start = starts[number]
            frames = [
                np.asarray(Image.open(place / f"{at:06}.png"))
                for at in range(start, start + LENGTH)
            ]
            return torch.from_numpy(np.stack(frames))

    def endless() -> Iterator[Any]:
        while True:
            yield from DataLoader(Windows(), BATCH, shuffle=True)

    return endless()


def open_large(folder: Path) -> tuple[float, float]:
    """Return the CPU-seconds and MB of memory for opening a cached set of ten million clips."""
    episodes, frames = 10_000, 1_000 + LENGTH - 1
    blob = encode_frames(np.zeros((32, 64, 64, 3), np.uint8))[0]
    ids = [f"{number:016x}" for number in range(episodes)]
    shards = [
        Shard(f"env=Counting/{i}", 1, "", (SessionRecord(i, "Counting", "random", frames),))
        for i in ids
    ]
    large = manifest.Manifest(
        {shard.path: shard for shard in shards}, {"Counting": dict.fromkeys(ids, False)}
    )
    large.save(folder)
    blobs, actions = [blob] * -(-frames // 32), bytes(frames - 1)
    same = {
        "game": "Counting",
        "validation": False,
        "height": 64,
        "width": 64,
        "chunk": 32,
        "actions": actions,
    }
    same |= {
        "actions_crc": zlib.crc32(actions),
        "frames": blobs,
        "frames_crc": [zlib.crc32(blob)] * len(blobs),
    }
    with pa.ipc.new_file(
        arrow_cache.staged_path(folder, large.hash()), arrow_cache.SCHEMA
    ) as writer:
        for first in range(0, episodes, 1_000):
            rows = [{"session_id": session_id, **same} for session_id in ids[first : first + 1_000]]
            writer.write_batch(
                pa.RecordBatch.from_pylist(rows, arrow_cache.SCHEMA), {"skipped": "{}"}
            )
    # A new process, in which nothing else allocates or frees memory meanwhile.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        windows, seconds, memory = pool.submit(_open_clips, folder).result()
    if windows != 10_000_000:
        raise AssertionError(f"{windows} clips are not ten million")
    return seconds, memory / 1e6


def _open_clips(folder: Path) -> tuple[int, float, int]:
    """Return the number of clips, CPU-seconds and additional bytes of opening a data set."""
    before, started = resident_bytes(), time.process_time()
    clips = ClipDataset([folder], folder, length=LENGTH)
    return len(clips), time.process_time() - started, resident_bytes() - before


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
