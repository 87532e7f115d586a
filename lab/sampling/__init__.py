"""Draws with the tiny models: plain, with every method, mixed, and by a style reference."""
