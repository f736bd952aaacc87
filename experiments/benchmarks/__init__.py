"""Benchmarks of data loading, the model and the reward against simple baselines."""
