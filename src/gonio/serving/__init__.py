"""Answers of one base model under a chosen subset of its adapters, many requests at a time."""

from gonio.serving.admission import EngineLimits
from gonio.serving.engine import CompletionEngine, EngineStats
from gonio.serving.mixture import AdapterMixture, MixtureBytes, RowWeights
from gonio.serving.requests import Completion, CompletionRequest, Ticket
from gonio.serving.sampling import Sampling

__all__ = [
    "AdapterMixture",
    "Completion",
    "CompletionEngine",
    "CompletionRequest",
    "EngineLimits",
    "EngineStats",
    "MixtureBytes",
    "RowWeights",
    "Sampling",
    "Ticket",
]
