"""Neural networks: tokenizer, latent action model, dynamics, upscaler, and world models."""
