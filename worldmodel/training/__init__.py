"""The training loop of every component, on one process or several."""
