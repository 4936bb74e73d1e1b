"""What the pages call methods and protocols."""

from __future__ import annotations

__all__ = ["METHODS", "PROTOCOLS", "method_name", "protocol_name"]

# From exact to useless.
METHODS = {
    "full": "full precision",
    "transform-both": "2.28 bits, transform, keys and values",
    "transform-keys": "1.78 bits, transform, keys",
    "sign-learned": "1 bit, learned rotation",
    "sign-hadamard": "1 bit, random Hadamard",
    "sign-haar": "1 bit, random rotation",
    "sign-none": "1 bit, no rotation",
    "zeros": "zeros (keeps nothing)",
}
PROTOCOLS = {
    "teacher-forced": "all tokens encoded (teacher-forced)",
    "cache": "through a cache (prefill, then chunks)",
}


def method_name(method: str) -> str:
    """The name of a method for readers; unknown ones as they are."""
    return METHODS.get(method, method)


def protocol_name(protocol: str) -> str:
    """The name of a protocol for readers; unknown ones as they are."""
    return PROTOCOLS.get(protocol, protocol)
