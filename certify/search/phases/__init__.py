"""Complete search by splitting the phases of ReLUs, for networks of many inputs."""

from certify.search.phases.bounding import Effort
from certify.search.phases.query import search_phases
from certify.search.phases.search import Finding, PhaseOutcome, search
from certify.search.phases.trees import Trees
from certify.search.phases.witness import Witness

__all__ = ["Effort", "Finding", "PhaseOutcome", "Trees", "Witness", "search", "search_phases"]
