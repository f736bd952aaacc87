"""Ablations and analyses of the world model."""
