"""The web server, as everything that serves Illume runs it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys

from uvicorn import Config, Server
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from illume.end_with_parent import watch_parent


class ServerConfig(Config):
    """uvicorn's settings, with a listening socket whose connections send at once.

    Head and body of an answer are two writes. The kernel holds the second back until the first is acknowledged, 40 ms
    later; asyncio turns that off only for sockets made with a protocol number, and uvicorn's are not. Accepted
    connections inherit the option.
    """

    def bind_socket(self) -> socket.socket:
        """The listening socket."""
        listening = super().bind_socket()
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening

    def load(self) -> None:
        """Make the application, in the process that serves it."""
        stop_with_parent()
        super().load()


def stop_with_parent() -> None:
    """In one of several web processes: stop, as when told, once the process that started it is gone.

    Nobody could stop it then, nor start another in its place, and it would keep the port from the next server.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        watch_parent(parent.pid, lambda: os.kill(os.getpid(), signal.SIGTERM))


def config_of(*, host: str, port: int, processes: int = 1) -> ServerConfig:
    """How the application is served: on uvloop and httptools where they can be had."""
    return ServerConfig(
        "app.main:create_app",
        factory=True,
        host=host,
        port=port,
        workers=processes,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=10,
    )


def serve(config: ServerConfig) -> None:
    """Serve until a signal says stop, in as many processes as `config` wants. Exits where it cannot start."""
    listening = config.bind_socket()
    if config.workers > 1:
        Multiprocess(config, sockets=[listening]).run()
        return
    server = Server(config)
    server.run(sockets=[listening])
    if not server.started:
        sys.exit(STARTUP_FAILURE)
