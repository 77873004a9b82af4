"""What a search on phases has to answer: a search tree for every region and conjunction of output conditions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certify.bounds.backward import Form
from certify.ir import Graph
from certify.properties import Margins
from certify.properties.query import Case
from certify.regions import AbstractRegion, Box
from certify.rounding import gamma


@dataclass(frozen=True, eq=False)
class Trees:
    """In tree t, is there an x in region `owner[t]` where rows[t] y + constants[t] <= 0, all conditions at once?

    Attributes:
        graph: the network, in float64.
        region: the regions.
        owner: the region of each tree.
        rows, constants: the conditions on the flat outputs y.
        real: which conditions are there; the rest is padding.
    """

    graph: Graph
    region: AbstractRegion
    owner: Int[Tensor, " trees"]
    rows: Float[Tensor, "trees conditions outputs"]
    constants: Float[Tensor, "trees conditions"]
    real: Bool[Tensor, "trees conditions"]

    def __len__(self) -> int:
        return len(self.owner)

    @staticmethod
    def of_margins(graph: Graph, region: AbstractRegion, margins: Margins) -> "Trees":
        """A tree for every margin."""
        batch, targets, outputs = margins.rows.shape
        owner = torch.arange(batch).repeat_interleave(targets)
        rows, constants = margins.rows.reshape(-1, 1, outputs), margins.constants.reshape(-1, 1)
        return Trees(graph, region, owner, rows, constants, torch.ones_like(constants, dtype=torch.bool))

    @staticmethod
    def of_cases(graph: Graph, groups: Sequence[Sequence[Case]]) -> "Trees":
        """A tree for every case; the cases of a group share a box."""
        lower, upper = (np.stack([getattr(group[0], end) for group in groups]) for end in ("lower", "upper"))
        cases = [case for group in groups for case in group]
        owner = torch.tensor([k for k, group in enumerate(groups) for _ in group])
        most = max(len(case.b) for case in cases)
        rows = torch.zeros((len(cases), most, cases[0].A.shape[1]), dtype=torch.float64)
        constants = torch.zeros((len(cases), most), dtype=torch.float64)
        real = torch.zeros((len(cases), most), dtype=torch.bool)
        for t, case in enumerate(cases):
            count = len(case.b)
            rows[t, :count], constants[t, :count] = torch.from_numpy(case.A), -torch.from_numpy(case.b)
            real[t, :count] = True
        return Trees(graph, Box(torch.from_numpy(lower), torch.from_numpy(upper)), owner, rows, constants, real)

    def form(self, trees: Int[Tensor, " batch"]) -> Form:
        """The conditions of some trees as forms on the output."""
        rows = self.rows[trees].reshape((len(trees), -1, *self.graph.output_shape))
        constants = self.constants[trees]
        error = gamma(len(self.graph.nodes), constants.dtype) * constants.abs().amax(1, keepdim=True)
        return Form(self.graph.output, rows, constants, error)

    def even_weights(self) -> Float[Tensor, "trees conditions"]:
        """Of the conditions of each tree."""
        return (self.real / self.real.sum(1, keepdim=True)).float()

    def slack(self, outputs: Float[Tensor, "batch *shape"], trees: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The largest condition of each tree at given outputs: at most 0 where the point is a witness."""
        rows, constants = self.rows[trees].to(outputs), self.constants[trees].to(outputs)
        values = torch.einsum("bcn,bn->bc", rows, outputs.flatten(1)) + constants
        return values.masked_fill(~self.real[trees], -torch.inf).amax(1)
