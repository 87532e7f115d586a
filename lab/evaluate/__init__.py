"""Measures the methods on the tiny models."""
