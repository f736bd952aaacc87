"""Datasets, samplers and loaders: from episodes on disk to training batches."""
