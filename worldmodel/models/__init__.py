"""Neural networks: tokenizer, latent action model, dynamics, upscaler, and the world models made of them."""
