"""One module for each command of `autoexplore`."""
