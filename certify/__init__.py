"""Prove what a trained ReLU network cannot do inside a region."""
