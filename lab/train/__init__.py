"""Trains the tiny models anew."""
