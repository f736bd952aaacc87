"""One file for each thing a person runs: `autoexplore <command>`. No logic that belongs to envs, worldmodel or exploration."""
