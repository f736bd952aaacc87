"""Archive of moments of a game, from which play goes on. Loads neither torch nor Ray."""
