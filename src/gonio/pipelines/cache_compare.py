"""Every method of gonio and other people's packages by one protocol: bits, bytes, predictions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from filelock import FileLock, Timeout
from torch import Tensor

from gonio import __version__
from gonio.errors import CodecError, GonioError, ModelError, OutputError, SettingError
from gonio.files import require_writable
from gonio.kvcache import CacheCodec, calibrate_from_samples, control_codec, load_codec
from gonio.kvcache.evaluate import Protocol
from gonio.kvcache.filling import FULL
from gonio.kvcache.memory import coded_parts
from gonio.kvcache.options import TRANSFORMS, resolve_options
from gonio.kvcache.rotary import can_turn
from gonio.kvcache.samples import CacheSamples, collect_cache
from gonio.kvcache.sensitivity import MetricSamples, collect_metrics
from gonio.models.gguf import cache_folder
from gonio.pipelines.bench import Bench
from gonio.pipelines.compare_methods import METHODS, Contender, peer_contenders
from gonio.pipelines.compare_scores import NoCacheError, ScoreBook, Scorer
from gonio.pipelines.compare_summary import (
    ZEROS,
    applies,
    comparison_table,
    comparison_values,
)
from gonio.pipelines.peers.install import peers_folder
from gonio.pipelines.peers.registry import Peer
from gonio.records import Measurement, make_measurement

__all__ = ["CacheComparison", "compare_caches", "work_folder"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CacheComparison:
    """What is compared and how.

    Attributes:
        methods: Names in :data:`METHODS`.
        codecs: Codecs of the caller's, by name.
        peers: Packages.
        protocols: ``teacher-forced``, ``cache`` or both.
        prefill: Tokens before the first chunk (``cache``).
        chunk: Tokens per chunk (``cache``).
        peers_root: Where peers are installed; :func:`peers_folder` unless given.
        work: Where unfinished work is kept; :func:`work_folder` unless given.
        seed: Seed of calibration, peers and bootstrap.
    """

    methods: Sequence[str] = tuple(METHODS)
    codecs: Mapping[str, CacheCodec] | None = None
    peers: Sequence[Peer] = ()
    protocols: tuple[Protocol, ...] = get_args(Protocol)
    prefill: int = 256
    chunk: int = 32
    peers_root: Path | None = None
    work: Path | None = None
    seed: int = 0


def work_folder(bench: Bench, plan: CacheComparison) -> Path:
    """Where scores of this model, text and protocol are kept between runs."""
    facts = {
        "inputs": [[each.name, each.sha256] for each in bench.inputs],
        "calibration": bench.calibration.tolist(),
        "evaluation": bench.evaluation.tolist(),
        "prefill": plan.prefill,
        "chunk": plan.chunk,
        "seed": plan.seed,
    }
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return (plan.work or cache_folder() / "compare") / digest


def compare_caches(
    bench: Bench, plan: CacheComparison | None = None, *, progress: Progress | None = None
) -> Measurement:
    """Score every contender; what fails is a row that says so.

    Each window's scores are kept as they come: a killed run continues where it was, and a later
    run with more contenders measures only those. Failures are tried again.

    Args:
        bench: The model; its evaluation windows are scored, its calibration windows learned from.
        plan: What is compared.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``cache-comparison``; tables ``methods`` (one row per contender and protocol:
        ``method``, ``origin``, ``version``, ``parts``, ``protocol``, ``status``, ``message``,
        ``key_bits`` and ``value_bits`` of the codes, ``bits`` of the coded parts, ``held_*`` of the
        memory really kept, ``side_bytes``, the scores of
        :func:`gonio.kvcache.summaries.summarize_scores` and ``is_frontier``) and ``windows``.

    Raises:
        SettingError: Windows are too short, or two rows have the same name.
        ModelError: A cache of zeros scores like full precision: nothing is measured.
        OutputError: The work folder cannot be written.
    """
    plan = plan or CacheComparison()
    if "cache" in plan.protocols and bench.evaluation.shape[1] <= plan.prefill + 1:
        raise SettingError(
            f"windows of {bench.evaluation.shape[1]} tokens leave nothing to score after "
            f"{plan.prefill} tokens of prefill\nAsk for longer windows or a shorter prefill."
        )
    work = work_folder(bench, plan)
    require_writable(work)
    try:
        with FileLock(work / ".lock", timeout=0):
            methods, windows = _measure(bench, plan, work, progress)
    except Timeout as error:
        raise OutputError(f"another run is working in {work}; wait for it to end.") from error
    return make_measurement(
        "cache-comparison",
        f"Caches of {bench.source} beside other packages",
        settings={
            "model": bench.source,
            "text": bench.text_name,
            "windows": list(bench.evaluation.shape),
            "calibration_tokens": bench.calibration.numel(),
            "protocols": list(plan.protocols),
            "prefill": plan.prefill,
            "chunk": plan.chunk,
            "peers": {peer.name: f"{peer.distribution} {peer.version}" for peer in plan.peers},
            "methods": list(plan.methods),
        },
        values=comparison_values(methods),
        tables={"methods": methods, "windows": windows},
        inputs=bench.inputs,
        seed=plan.seed,
        dtype=bench.model.dtype,
        device=bench.model.device.type,
    )


def _measure(
    bench: Bench, plan: CacheComparison, work: Path, progress: Progress | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of methods and of windows."""
    samples = _Samples(bench, plan.seed, progress)
    contenders = _contenders(bench, plan, work, samples, progress)
    scorer = Scorer(
        model=bench.model,
        windows=bench.evaluation,
        prefill=plan.prefill,
        chunk=plan.chunk,
        peers_root=plan.peers_root or peers_folder(),
        samples=lambda: samples.keys_and_values,
        seed=plan.seed,
    )
    try:
        rows, statuses = _run(scorer, contenders, plan.protocols, work, progress)
    finally:
        scorer.close()
    windows = pd.DataFrame(rows)
    _require_zeros_hurt(windows)
    return comparison_table(windows, contenders, statuses, plan.protocols, plan.seed), windows


class _Samples:
    """Keys and values of the calibration windows, collected when first asked for."""

    def __init__(self, bench: Bench, seed: int, progress: Progress | None) -> None:
        self.bench, self.seed, self.progress = bench, seed, progress
        self._found: CacheSamples | None = None
        self._weighed: MetricSamples | None = None

    def get(self, *, metrics: bool) -> CacheSamples:
        """Keys as cached and values; or before RoPE, with what errors cost, for a method's use."""
        model, windows = self.bench.model, self.bench.calibration
        if metrics and self._weighed is None:
            self._weighed = collect_metrics(
                model,
                windows,
                pre_rope=can_turn(model),
                seed=self.seed,
                progress=self.progress,
            )
        elif not metrics and self._found is None:
            self._found = collect_cache(model, windows, progress=self.progress)
        found = self._weighed if metrics else self._found
        assert found is not None  # one of the branches above made it
        return found

    @property
    def keys_and_values(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Per layer ``(windows, heads, tokens, dim)``."""
        found = self.get(metrics=False)
        return found.keys, found.values


def _contenders(
    bench: Bench, plan: CacheComparison, work: Path, samples: _Samples, progress: Progress | None
) -> list[Contender]:
    """The control, gonio's methods, the caller's codecs and the peers, in this order."""
    _require_distinct([FULL, ZEROS, *plan.methods, *(plan.codecs or {})])
    codecs = {ZEROS: control_codec(bench.model, ZEROS)}
    for done, name in enumerate(plan.methods):
        if progress is not None:
            progress(f"calibrating {name}", done, len(plan.methods))
        codecs[name] = _calibrated(name, work, samples, plan.seed)
    rows = [
        Contender(
            name, "both" if "values" in coded_parts(codec) else "keys", codec.fingerprint, codec
        )
        for name, codec in (*codecs.items(), *(plan.codecs or {}).items())
    ]
    return rows + peer_contenders(plan.peers)


def _require_distinct(names: Sequence[str]) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise SettingError(f"two rows are called {twice[0]!r}: rename the codec file")


def _calibrated(name: str, work: Path, samples: _Samples, seed: int) -> CacheCodec:
    """The codec of an earlier run, or a new one."""
    options = dict(METHODS[name])
    # With what a release of gonio makes of them: its defaults may change.
    facts = [__version__, resolve_options(options["method"], "keys", {}), options]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    path = work / "codecs" / f"{digest}.safetensors"
    with suppress(CodecError):  # absent, or of another version of the format
        return load_codec(path)
    learn = samples.get(metrics=options["method"] in TRANSFORMS)
    codec = calibrate_from_samples(learn, seed=seed, **options)
    codec.save(path)
    return load_codec(path)  # as a later run does: side data lies otherwise in a fitted one


def _run(
    scorer: Scorer,
    contenders: Sequence[Contender],
    protocols: Sequence[Protocol],
    work: Path,
    progress: Progress | None,
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], tuple[str, str]]]:
    """Score rows of every window, and status and message by contender and protocol."""
    book = ScoreBook(work / "scores.json")
    count = scorer.windows.shape[0]
    total = len(contenders) * len(protocols)
    rows: list[dict[str, Any]] = []
    statuses: dict[tuple[str, str], tuple[str, str]] = {}
    done = 0
    for protocol in protocols:
        for window in range(count):
            row = _full_row(scorer, book, window, protocol)
            rows.append({"method": FULL, "protocol": protocol, "window": window, **row})
        for contender in contenders:
            if not applies(contender, protocol):
                continue
            if progress is not None:
                progress(f"{contender.name}, {protocol}", done, total)
            found, status = _contend(scorer, book, contender, protocol)
            statuses[contender.name, protocol] = status
            rows += [
                {"method": contender.name, "protocol": protocol, "window": i, **row}
                for i, row in enumerate(found)
            ]
            done += 1
    return rows, statuses


def _full_row(scorer: Scorer, book: ScoreBook, window: int, protocol: Protocol) -> dict[str, Any]:
    known = book.find(FULL, protocol, window)
    if known is None:
        known = scorer.score_full(window, protocol)
        book.add(FULL, protocol, window, known)
    return known


def _contend(
    scorer: Scorer, book: ScoreBook, contender: Contender, protocol: Protocol
) -> tuple[list[dict[str, Any]], tuple[str, str]]:
    """The rows of one contender, or none and why."""
    windows = range(scorer.windows.shape[0])
    known = [book.find(contender.key, protocol, window) for window in windows]
    peer = contender.peer
    if None in known and peer is not None and not peer.is_installed(scorer.peers_root):
        command = f"gonio cache compare MODEL --install --peers {peer.name}"
        return [], ("not installed", f"{peer.distribution}=={peer.version}: {command}")
    if None in known:
        try:
            with scorer.open(contender) as score:
                for window in windows:
                    if known[window] is None:
                        row = score(window, protocol)
                        book.add(contender.key, protocol, window, row)
                        known[window] = row
        except NoCacheError as error:
            return [], ("no cache", str(error))
        except OutputError:
            raise  # the disk's fault, not the contender's
        except GonioError as error:
            return [], ("failed", str(error))
    return [row for row in known if row is not None], ("ok", "")


def _require_zeros_hurt(windows: pd.DataFrame) -> None:
    zeros = windows[windows["method"] == ZEROS]
    for protocol, group in zeros.groupby("protocol", sort=False):
        if group["logit_kl"].max() == 0:
            raise ModelError(
                f"a cache of zeros predicts exactly what full precision does ({protocol})\n"
                "The model does not read its cache, so nothing can be compared on it."
            )
