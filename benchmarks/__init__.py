"""Measurements against peers; not run by default."""
