"""Recording episodes of games, on many emulator processes."""

from envs.collect.collector import collect
from envs.collect.worker_pool import CollectSummary

__all__ = ["CollectSummary", "collect"]
