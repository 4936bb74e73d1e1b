"""Running the application: a socket on loopback, a thread for HTTP, signals that stop both."""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType

from gonio.errors import MissingDependencyError, SettingError
from gonio.serving.engine import CompletionEngine

__all__ = ["is_loopback", "require_serving", "running_server", "serve_until_signal"]

_STARTUP = 30.0  # seconds
_FLUSH = 5  # seconds for answers that are done to reach their clients


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def require_serving() -> None:
    """Check that the packages of the ``serve`` extra are there.

    Raises:
        MissingDependencyError: One is not installed.
    """
    for name in ("fastapi", "uvicorn"):
        if find_spec(name) is None:
            raise MissingDependencyError(
                f"serving needs the package {name}, which is not installed\n"
                "Install it with: pip install 'gonio[serve]'"
            )


@contextmanager
def running_server(
    engine: CompletionEngine, model_name: str, *, host: str = "127.0.0.1", port: int = 0
) -> Iterator[str]:
    """Serve a started engine over HTTP while inside.

    Args:
        engine: A started engine.
        model_name: What the base model is called.
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.

    Yields:
        The server's URL, ``http://127.0.0.1:PORT``.

    Raises:
        MissingDependencyError: The ``serve`` extra is not installed.
        SettingError: The address cannot be listened on.
    """
    require_serving()
    import uvicorn

    from gonio.serving.app import build_app

    listener = _listen(host, port)
    local_names = host in ("127.0.0.1", "localhost")
    config = uvicorn.Config(
        build_app(engine, model_name, local=local_names),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_FLUSH,
    )
    server = uvicorn.Server(config)
    # Outside the main thread uvicorn leaves signals alone: they are ours.
    thread = threading.Thread(target=server.run, args=([listener],), name="gonio-http", daemon=True)
    thread.start()
    try:
        _await_start(lambda: server.started, thread)
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def serve_until_signal(
    engine: CompletionEngine,
    model_name: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    grace: float = 10.0,
    on_start: Callable[[str], None] | None = None,
) -> int:
    """Serve until SIGINT or SIGTERM; must run in the main thread.

    At the signal waiting requests are refused and running ones get ``grace`` seconds; a second
    signal drops them at once.

    Args:
        engine: A started engine; closed in the end.
        model_name: What the base model is called.
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        grace: Seconds for what runs.
        on_start: Called with the server's URL.

    Returns:
        Requests that were dropped.

    Raises:
        MissingDependencyError: The ``serve`` extra is not installed.
        SettingError: The address cannot be listened on.
    """
    signals: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        signals.append(number)

    handled = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in handled}
    try:
        with running_server(engine, model_name, host=host, port=port) as url:
            if on_start is not None:
                on_start(url)
            while not signals:
                time.sleep(0.1)
            engine.drain()
            deadline = time.monotonic() + grace
            while engine.stats.running and len(signals) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            dropped = engine.stats.running
            engine.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return dropped


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        raise SettingError(
            f"cannot listen on {host} port {port}: {error}\n"
            "Give another --port, or 0 for a free one."
        ) from error


def _await_start(is_started: Callable[[], bool], thread: threading.Thread) -> None:
    deadline = time.monotonic() + _STARTUP
    while not is_started():
        if not thread.is_alive() or time.monotonic() > deadline:
            raise SettingError("the HTTP server did not start")
        time.sleep(0.01)
