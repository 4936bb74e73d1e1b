"""The attention key cache: observe it, compress it, score what that does."""

from gonio.kvcache.calibrate import (
    calibrate,
    calibrate_from_samples,
    codec_rotations,
    control_codec,
)
from gonio.kvcache.codec import CacheCodec, load_codec
from gonio.kvcache.contract import KeyCodec
from gonio.kvcache.control_codecs import LosslessCodec, ZeroCodec
from gonio.kvcache.encoded import EncodedKeys
from gonio.kvcache.evaluate import EvaluationSettings, evaluate_codecs
from gonio.kvcache.geometry import rotation_convergence, sign_cosine_table
from gonio.kvcache.layer import CompressedLayer
from gonio.kvcache.observe import KeySamples, collect_keys
from gonio.kvcache.sign_codec import SignCodec
from gonio.kvcache.transforms import RotationKind, key_rotations

__all__ = [
    "CacheCodec",
    "CompressedLayer",
    "EncodedKeys",
    "EvaluationSettings",
    "KeyCodec",
    "KeySamples",
    "LosslessCodec",
    "RotationKind",
    "SignCodec",
    "ZeroCodec",
    "calibrate",
    "calibrate_from_samples",
    "codec_rotations",
    "collect_keys",
    "control_codec",
    "evaluate_codecs",
    "key_rotations",
    "load_codec",
    "rotation_convergence",
    "sign_cosine_table",
]
