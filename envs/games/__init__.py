"""Games as Gymnasium environments, one module each."""
