"""Adversarially robust training as a convex program (Bai, Gautam & Sojoudi 2022), and with softened cones."""
