"""Conditions on the outputs of a network."""

from certify.properties.margins import Margins, margins_of_labels

__all__ = ["Margins", "margins_of_labels"]
