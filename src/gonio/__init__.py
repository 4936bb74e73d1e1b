"""gonio measures and turns the geometry of language models."""

__all__ = ["__version__"]

__version__ = "0.1.0"
