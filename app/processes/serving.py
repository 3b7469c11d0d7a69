"""The web server, configured the same way wherever Illume is served."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys

from uvicorn import Config, Server
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from app.processes.connections import BoundedConnection
from app.processes.log_lines import keep_lines_whole
from app.settings import get_settings, names_in
from illume.end_with_parent import watch_parent


class ServerConfig(Config):
    """uvicorn's settings, with TCP_NODELAY on the listening socket.

    Head and body of a response are two writes. The kernel delays the second until the first is acknowledged, 40 ms
    later. asyncio disables that only for sockets made with a protocol number, and uvicorn's are not. Accepted
    connections inherit the option.
    """

    def bind_socket(self) -> socket.socket:
        """Create the listening socket."""
        listening = super().bind_socket()
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening

    def load(self) -> None:
        """Create the application in the process that serves it."""
        keep_lines_whole()
        stop_with_parent()
        super().load()


def stop_with_parent() -> None:
    """In one of several web processes: stop gracefully once the parent process is gone.

    Nobody could stop or replace it then, and it would keep the port from the next server.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        watch_parent(parent.pid, lambda: os.kill(os.getpid(), signal.SIGTERM))


def server_config(*, host: str, port: int, processes: int = 1) -> ServerConfig:
    """The server's configuration: uvloop and httptools if they are installed."""
    return ServerConfig(
        "app.main:create_app",
        factory=True,
        host=host,
        port=port,
        workers=processes,
        access_log=False,
        use_colors=False,  # its colours would be escaped, as all control characters in logs are
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=10,
        timeout_keep_alive=get_settings().idle_seconds,
        http=BoundedConnection,
        forwarded_allow_ips=names_in(get_settings().trusted_proxies),
    )


def serve(config: ServerConfig) -> None:
    """Serve until a signal arrives, in as many processes as `config` says. Exits if it cannot start."""
    listening = config.bind_socket()
    if config.workers > 1:
        Multiprocess(config, sockets=[listening]).run()
        return
    server = Server(config)
    server.run(sockets=[listening])
    if not server.started:
        sys.exit(STARTUP_FAILURE)
