"""Neural networks: tokenizer, latent action model, dynamics, upscaler, and the world models built
of them.
"""
