"""Linear algebra of weight updates, subspaces and rotations, with its closed-form nulls."""

from gonio.linalg.certified import certified_subspaces, dense_subspaces
from gonio.linalg.chance import (
    c_infinity,
    expected_gain_residual,
    expected_overlap,
    overlap_variance,
    overlap_z_score,
    random_lora_singular_values,
    random_matrix_singular_values,
    sign_cosine_of_random_direction,
)
from gonio.linalg.hadamard import (
    hadamard_matrix,
    hadamard_transform,
    has_hadamard,
    randomized_hadamard,
)
from gonio.linalg.krylov import TopSubspaces, certified_top_subspaces, krylov_subspaces
from gonio.linalg.lowrank import (
    FactoredSpectrum,
    FactoredTruncation,
    factored_frobenius_norm,
    factored_inner_product,
    factored_singular_values,
    factored_spectrum,
    factored_svd,
    factored_truncation,
)
from gonio.linalg.precision import upcast
from gonio.linalg.resampling import (
    Interval,
    bootstrap_interval,
    cluster_bootstrap_interval,
    paired_bootstrap_interval,
    permutation_p_value,
)
from gonio.linalg.rotations import (
    haar_rotation,
    householder_reflection,
    learned_sign_rotation,
    procrustes_rotation,
)
from gonio.linalg.spectrum import (
    effective_rank,
    energy_rank,
    frobenius_norm,
    numerical_rank,
    spectral_norm,
    spectral_tolerance,
    stable_rank,
)
from gonio.linalg.subspaces import (
    orthonormal_basis,
    principal_angles,
    subspace_overlap,
    top_singular_subspaces,
)

__all__ = [
    "FactoredSpectrum",
    "FactoredTruncation",
    "Interval",
    "TopSubspaces",
    "bootstrap_interval",
    "c_infinity",
    "certified_subspaces",
    "certified_top_subspaces",
    "cluster_bootstrap_interval",
    "dense_subspaces",
    "effective_rank",
    "energy_rank",
    "expected_gain_residual",
    "expected_overlap",
    "factored_frobenius_norm",
    "factored_inner_product",
    "factored_singular_values",
    "factored_spectrum",
    "factored_svd",
    "factored_truncation",
    "frobenius_norm",
    "haar_rotation",
    "hadamard_matrix",
    "hadamard_transform",
    "has_hadamard",
    "householder_reflection",
    "krylov_subspaces",
    "learned_sign_rotation",
    "numerical_rank",
    "orthonormal_basis",
    "overlap_variance",
    "overlap_z_score",
    "paired_bootstrap_interval",
    "permutation_p_value",
    "principal_angles",
    "procrustes_rotation",
    "random_lora_singular_values",
    "random_matrix_singular_values",
    "randomized_hadamard",
    "sign_cosine_of_random_direction",
    "spectral_norm",
    "spectral_tolerance",
    "stable_rank",
    "subspace_overlap",
    "top_singular_subspaces",
    "upcast",
]
