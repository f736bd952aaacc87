"""One file for each thing a person runs, `autoexplore <command>`; no logic that belongs to the other three."""
