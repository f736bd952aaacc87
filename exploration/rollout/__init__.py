"""Environment runners: vectorised games, the reward connector and callbacks."""
