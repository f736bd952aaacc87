"""Episodes on disk: a data set of Parquet shards with a manifest, lossless and checksummed."""

from envs.episodes.dataset import EpisodeReader, EpisodeWriter

__all__ = ["EpisodeReader", "EpisodeWriter"]
