"""What the tiny models are trained on."""
