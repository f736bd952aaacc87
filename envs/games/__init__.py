"""Games as Gymnasium environments: stable-retro, CoinRun, and two that need no ROM."""
