"""Episodes on disk: a lossless, checksummed data set of Parquet shards with a manifest."""

from envs.episodes.dataset import EpisodeReader, EpisodeWriter

__all__ = ["EpisodeReader", "EpisodeWriter"]
