"""The pipeline: configuration, stages and the runner that skips finished ones."""
