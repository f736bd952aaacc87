"""Games as Gymnasium environments: stable-retro, CoinRun, and three that need no ROM."""
