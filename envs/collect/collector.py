"""Collection of episodes: a queue of episodes, Ray actors that play and write them, one manifest.

Every episode is identified before it is played. A killed run therefore resumes where it stopped,
and the frames do not depend on the number of workers.
"""

from collections.abc import Sequence
from pathlib import Path

from envs import BUILTIN, builtin_name, catalog, chosen_actions
from envs.collect.imported_policy import named_policy
from envs.collect.policies import PolicySpec
from envs.collect.worker import CollectWorker, EpisodeKey
from envs.collect.worker_pool import CollectSummary, WorkerSpec, default_timeout, play_missing
from envs.controls import ACTIONS
from envs.episodes.dataset import EpisodeWriter
from envs.games.base import EnvOptions
from envs.utils.errors import InputError
from envs.utils.progress import console


def collect(
    games: Sequence[str],
    out: str | Path,
    *,
    episodes: int,
    steps: int,
    policy: str | PolicySpec = "random",
    workers: int = 2,
    seed: int = 0,
    timeout: float | None = None,
    actions: Sequence[str] = (),
    options: EnvOptions = (),
    progress: bool = True,
) -> CollectSummary:
    """Play `episodes` episodes of at most `steps` steps of each game and write them to `out`.

    `policy` is a name of `builtin_policy`, the import path of a class
    (`envs.collect.imported_policy`), or the spec of an agent
    (`exploration.agent.policy.policy_spec`). An episode that takes more than `timeout` seconds
    (default: 60 s plus 0.1 s per step) counts as hung, and its emulator is killed. Episodes that
    the folder already holds are not played again. `actions`: names of other actions than the games'
    own, see `envs.controls.button_mask`; an agent brings those that it was trained with. `options`
    are those of `envs.make`; squares that CoinRun paints for agents are not recorded. Uses the
    connected Ray cluster, or starts and stops a local one. A game without a ROM, or one whose
    emulator keeps dying or hanging, is reported and skipped.

    Raises: InputError for unknown games or actions, numbers out of range, no playable game, or an
    unusable `out`.
    """
    if min(episodes, steps, workers) < 1:
        raise InputError(
            f"episodes {episodes}, steps {steps} and workers {workers} must be at least 1"
        )
    if timeout is not None and timeout <= 0:
        raise InputError(f"timeout {timeout} must be above 0 seconds")
    spec = named_policy(policy, actions or ACTIONS) if isinstance(policy, str) else policy
    names, skipped = playable(games)
    chosen = chosen_actions(names, actions or spec.actions)
    keys = [
        EpisodeKey(game, spec.name, seed, number, chosen, tuple(options))
        for game in names
        for number in range(episodes)
    ]
    with EpisodeWriter(out) as writer:
        writer.check_actions(names, chosen)
        # The split is fixed before anything is played, so it does not depend on interruptions.
        sessions = ((key.game, key.id) for key in keys)
        writer.plan(sessions, f"{spec.name} seed {seed}", {"steps": steps})
        for path in writer.damaged:
            console.print(
                f"{writer.root / path} is damaged or missing: its episodes are played again"
            )

        # Validation episodes first: a run that is cut short can still be evaluated.
        def order(key: EpisodeKey) -> tuple[int, bool, int]:
            is_validation = writer.manifest.is_validation(key.game, key.id)
            return names.index(key.game), not is_validation, key.episode

        keys.sort(key=order)
        arguments = (str(writer.root.resolve()), spec.build, steps)
        actors = WorkerSpec(CollectWorker, arguments, workers, timeout or default_timeout(steps))
        summary = play_missing(writer, keys, actors, title="collect", shown=progress)
    summary.skipped = skipped | summary.skipped
    if not summary.episodes:
        reasons = "; ".join(f"{game}: {reason}" for game, reason in summary.skipped.items())
        raise InputError(f"no episode could be played: {reasons}")
    return summary


def playable(games: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the names of the playable games, without repeats, and game -> reason of the others.

    Raises: InputError for an unknown game, and if no game is left.
    """
    if not games:
        raise InputError(
            "no game given: name one or more, e.g. Airstriker-Genesis (`autoexplore catalog` "
            "lists them)"
        )
    known = [builtin_name(game) or catalog.canonical(game) for game in catalog.expand(games)]
    names = [game for game in dict.fromkeys(known) if game in BUILTIN or catalog.has_rom(game)]
    skipped = {game: "its ROM is not imported" for game in known if game not in names}
    if not names:
        examples = ", ".join(list(skipped)[:3]) + (", ..." if len(skipped) > 3 else "")
        raise InputError(f"no ROM for {examples}: import yours with `python -m envs.roms FOLDER`")
    for game, reason in skipped.items():
        console.print(f"{game} is skipped: {reason}")
    return names, skipped
