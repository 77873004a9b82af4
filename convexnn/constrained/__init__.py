"""Training under linear constraints on predictions: program, judge, solvers."""
