"""The 1-bit instrument on weight matrices: their rows, rotations of them, and experts."""

from gonio.weights.experts import expert_gaps, shared_rotation_of_directions
from gonio.weights.residual import random_top_share, top_energy_share
from gonio.weights.rotate import (
    FAMILIES,
    Rotation,
    StreamMatrix,
    require_rotatable,
    rotate_stream,
    stream_matrices,
    stream_rotation,
)
from gonio.weights.rows import StoredMatrix, input_groups, list_matrices, read_matrices
from gonio.weights.signs import (
    SignFigure,
    SignSettings,
    WeightSigns,
    centered_direction_beta,
    random_direction_beta,
    sign_storage,
)

__all__ = [
    "FAMILIES",
    "Rotation",
    "SignFigure",
    "SignSettings",
    "StoredMatrix",
    "StreamMatrix",
    "WeightSigns",
    "centered_direction_beta",
    "expert_gaps",
    "input_groups",
    "list_matrices",
    "random_direction_beta",
    "random_top_share",
    "read_matrices",
    "require_rotatable",
    "rotate_stream",
    "shared_rotation_of_directions",
    "sign_storage",
    "stream_matrices",
    "stream_rotation",
    "top_energy_share",
]
