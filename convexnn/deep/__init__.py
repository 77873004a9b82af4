"""Deeper networks: parallel three-layer ReLU networks, linear networks of any depth, rank-one data."""
