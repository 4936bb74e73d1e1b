"""The attention cache, keys and values: observe it, compress it, score what that does."""

from gonio.kvcache.affine_codec import AffineCodec
from gonio.kvcache.calibrate import (
    calibrate,
    calibrate_from_samples,
    codec_rotations,
    control_codec,
)
from gonio.kvcache.certify import LayerCertificate, certify_attention
from gonio.kvcache.codec import CacheCodec, load_codec
from gonio.kvcache.commuting import (
    CommutingRotation,
    RotaryLayout,
    learn_commuting_rotation,
)
from gonio.kvcache.compressed_cache import CompressedCache
from gonio.kvcache.contract import TensorCodec
from gonio.kvcache.control_codecs import LosslessCodec, ZeroCodec
from gonio.kvcache.correction import RankCorrection
from gonio.kvcache.encoded import EncodedTensor
from gonio.kvcache.entropy_codec import EntropyCodec
from gonio.kvcache.evaluate import EvaluationSettings, evaluate_codecs
from gonio.kvcache.exceptions import ExactExceptions
from gonio.kvcache.filling import fill_caches
from gonio.kvcache.fold import fold_rotations, rotary_layout
from gonio.kvcache.frame import Frame
from gonio.kvcache.geometry import rotation_convergence, sign_cosine_table
from gonio.kvcache.layer import CompressedLayer
from gonio.kvcache.memory import allocation_table, memory_table
from gonio.kvcache.observation import Observation, ObservationSettings, observe_attention
from gonio.kvcache.options import CodecOptions
from gonio.kvcache.packed_attention import use_packed_attention
from gonio.kvcache.packed_codec import PackedTransformCodec
from gonio.kvcache.positions import PositionWarning
from gonio.kvcache.pre_rope_codec import PreRopeCodec
from gonio.kvcache.recall import RecallSettings, random_passages, recall_probes, summarize_recall
from gonio.kvcache.refined_codec import RefinedCodec
from gonio.kvcache.residual_sign_codec import ResidualSignCodec
from gonio.kvcache.samples import CacheSamples, KeySamples, collect_cache, collect_keys
from gonio.kvcache.scalar_codec import ScalarCodec
from gonio.kvcache.sensitivity import MetricSamples, collect_metrics
from gonio.kvcache.sign_codec import SignCodec
from gonio.kvcache.sinks import SinkSettings
from gonio.kvcache.sliding import CompressedSlidingLayer
from gonio.kvcache.storage import cached_tokens, load_cache, save_cache
from gonio.kvcache.summaries import compare_methods, summarize_scores
from gonio.kvcache.transform_codec import TransformCodec
from gonio.kvcache.transform_fit import excess_over_limit
from gonio.kvcache.transforms import RotationKind, key_rotations

__all__ = [
    "AffineCodec",
    "CacheCodec",
    "CacheSamples",
    "CodecOptions",
    "CommutingRotation",
    "CompressedCache",
    "CompressedLayer",
    "CompressedSlidingLayer",
    "EncodedTensor",
    "EntropyCodec",
    "EvaluationSettings",
    "ExactExceptions",
    "Frame",
    "KeySamples",
    "LayerCertificate",
    "LosslessCodec",
    "MetricSamples",
    "Observation",
    "ObservationSettings",
    "PackedTransformCodec",
    "PositionWarning",
    "PreRopeCodec",
    "RankCorrection",
    "RecallSettings",
    "RefinedCodec",
    "ResidualSignCodec",
    "RotaryLayout",
    "RotationKind",
    "ScalarCodec",
    "SignCodec",
    "SinkSettings",
    "TensorCodec",
    "TransformCodec",
    "ZeroCodec",
    "allocation_table",
    "cached_tokens",
    "calibrate",
    "calibrate_from_samples",
    "certify_attention",
    "codec_rotations",
    "collect_cache",
    "collect_keys",
    "collect_metrics",
    "compare_methods",
    "control_codec",
    "evaluate_codecs",
    "excess_over_limit",
    "fill_caches",
    "fold_rotations",
    "key_rotations",
    "learn_commuting_rotation",
    "load_cache",
    "load_codec",
    "memory_table",
    "observe_attention",
    "random_passages",
    "recall_probes",
    "rotary_layout",
    "rotation_convergence",
    "save_cache",
    "sign_cosine_table",
    "summarize_recall",
    "summarize_scores",
    "use_packed_attention",
]
