"""Evaluation of predicted frames, codebooks and uncertainty on held-out episodes."""
