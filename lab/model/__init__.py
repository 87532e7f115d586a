"""The tiny Flux and the tiny Wan with their VAE, and the trained weights."""
