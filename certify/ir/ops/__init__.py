"""The operations a network is made of.

An operation is frozen data plus the few linear-algebra actions that the bounding methods need. The arrays may
be torch tensors or numpy arrays: only their common interface is used, so that a graph can be read and run
without torch.

Affine operations answer for their own transposes here; what is not affine has its linear pieces in
`certify.relaxations`, one record per operation. Values are `(batch, *shape)`, coefficient rows on a value are
`(batch or 1, rows, *shape)`.

The list is short on purpose. Every piecewise linear function (leaky ReLU, clipping, absolute values, maxima and
max pooling) is written with `ReLU` and affine operations by `certify.ir.build`: whatever can bound, branch on
or encode a ReLU can then do so for all of them. Every movement of entries (transposing, slicing, gathering,
padding, repeating) is one `Select`.
"""

from certify.ir.ops.base import AbstractAffine, AbstractOp, AbstractPointwise, Input, Shape
from certify.ir.ops.conv import Conv, ConvTranspose, Window
from certify.ir.ops.dense import AxisLinear, Linear, Scale
from certify.ir.ops.moves import Concat, Reshape, Select
from certify.ir.ops.pointwise import ReLU, Sigmoid, Tanh
from certify.ir.ops.sums import Maximum, Sum

__all__ = [
    "AbstractAffine",
    "AbstractOp",
    "AbstractPointwise",
    "AxisLinear",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Input",
    "Linear",
    "Maximum",
    "ReLU",
    "Reshape",
    "Scale",
    "Select",
    "Shape",
    "Sigmoid",
    "Sum",
    "Tanh",
    "Window",
]
