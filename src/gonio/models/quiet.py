"""Keep transformers' own progress bars and notices off the terminal while gonio works.

gonio shows progress of its own; two bars on one terminal write over each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_transformers"]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Show only errors of transformers inside; what was set before is restored after."""
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    had_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # The GGUF reader's bar does not listen to the setting above.
    reader_names = vars(gguf_reader)
    gguf_bar = reader_names["tqdm"]
    reader_names["tqdm"] = lambda items, **_: items
    try:
        yield
    finally:
        reader_names["tqdm"] = gguf_bar
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
