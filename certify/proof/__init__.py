"""Certificates as files, and a checker that accepts or rejects them in exact arithmetic.

`artefact` reads and writes the files, `check` judges them with integers only, `emit` makes them from bounds. The first
two import the standard library, numpy and (where it is installed) python-flint, nothing else.
"""
