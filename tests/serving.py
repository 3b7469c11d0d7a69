"""The application behind a real socket, in a thread of the test's process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import uvicorn

from app.main import create_app

SECONDS = 60.0  # generous for a busy machine; does not slow down tests that pass


@contextlib.contextmanager
def serve() -> Iterator[str]:
    """Serve the application, on the settings of this moment. Yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Without uvicorn's configuration of logging: it closes the handlers of the whole process, and one of absl (which
    # rouge-score imports) then closes its stream, which may be the file that pytest captures into.
    server = uvicorn.Server(uvicorn.Config(create_app(), port=port, log_config=None, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + SECONDS
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(SECONDS)
