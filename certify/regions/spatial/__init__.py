"""Images deformed by vector fields: I'(p) = I(p + v(p)) (Ruoss et al., AAAI 2021)."""

from certify.regions.spatial.vector_field import Deformation, VectorField, as_images

__all__ = ["Deformation", "VectorField", "as_images"]
