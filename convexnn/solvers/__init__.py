"""Solvers: a loop that owns limits and judgement, and the methods it drives."""
