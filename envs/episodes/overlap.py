"""Check that no episode is both learned from and tested on."""

from collections.abc import Collection, Sequence
from pathlib import Path

from envs.episodes.dataset import EpisodeReader
from envs.utils.errors import InputError


def refuse_shared_episodes(tested: Collection[str], folders: Sequence[Path]) -> None:
    """Raise InputError if a folder of training data holds one of the session ids `tested`.

    An id stands for a game, a policy, a seed and a number, so that equal ids are equal episodes.
    """
    for folder in folders:
        if both := set(tested).intersection(EpisodeReader(folder).session_ids):
            raise InputError(
                f"{len(both)} of {len(tested)} episodes to evaluate are in {folder} too, "
                f"e.g. {min(both)}: collect them with another seed"
            )
