"""Proved lower bounds on the objective of every network: relaxations, their solver, certificates, proof files."""
