"""`latentlake explore`: a local, read-only web view of a lake.

It listens on loopback alone. Names of other hosts are refused (DNS rebinding), and so are
websockets of other pages; what it sends tells the browser to load nothing from anywhere else.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import webbrowser
from typing import TYPE_CHECKING, Any

import click

from jobs.errors import InputError
from jobs.lake.storage import local_path
from jobs.query.api import Lake

if TYPE_CHECKING:
    from bokeh.server.server import Server

log = logging.getLogger("latentlake")

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
OTHER_HOSTS = r"(?!(?:127\.0\.0\.1|localhost)$).*"
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
UPLOAD = 64 << 20  # bytes of a message, in which a file is base64
HEADERS = {
    # Bokeh compiles its templates, and Panel's parts are modules in blobs.
    "Content-Security-Policy": "default-src 'self' blob: data:; "
    "script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def explore(uri: str, port: int | None, show: bool) -> None:
    """Serve until it is stopped. port: a free one if None. show: open a browser.

    Raises InputError where Panel is not installed, the lake is not there or the port is taken.
    """
    _require_panel()
    lake = Lake(uri)
    root = local_path(lake.uri)
    if root is not None and not root.is_dir():
        raise InputError(f"there is no lake at {lake.uri}; name another one with --lake")
    server = _server(lake, port or _free_port())
    for stop in STOPS:
        signal.signal(stop, lambda *_: server.io_loop.add_callback_from_signal(server.io_loop.stop))
    url = f"http://{HOST}:{server.port}/"
    server.start()
    click.echo(f"{url} shows {lake.uri}; ^C ends it")
    if show:
        server.io_loop.add_callback(webbrowser.open, url)
    try:
        server.io_loop.start()
    finally:
        with contextlib.suppress(AssertionError):  # it has been stopped
            server.stop(wait=False)
    log.info("explore: stopped")
    # Threads may be at questions that nobody waits for any more; there is nothing to be written.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def _require_panel() -> None:
    try:
        import panel  # noqa: F401
    except ImportError as error:
        raise InputError("explore needs Panel: pip install 'latentlake[explore]'") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _server(lake: Lake, port: int) -> Server:
    from bokeh.settings import settings
    from panel.io.server import get_server

    from flows.explore.page import TITLE, page, prepare
    from flows.explore.state import ExploreState

    prepare()
    origins = [f"{name}:{port}" for name in NAMES]
    # Over what the environment may say.
    settings.resources = "server"
    settings.allowed_ws_origin = origins
    try:
        server = get_server(
            {"/": page(ExploreState(lake))},
            port=port,
            address=HOST,
            websocket_origin=origins,
            websocket_max_message_size=UPLOAD,
            title=TITLE,
            start=False,
        )
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise InputError(f"something listens on port {port} already; name another one") from error
    _close(server)
    return server


def _close(server: Server) -> None:
    """Other hosts' names get nothing, and no other page may take this one into itself."""
    from tornado.web import OutputTransform, RequestHandler

    class RefusedRequest(RequestHandler):
        def prepare(self) -> None:
            self.set_status(403)
            self.finish("this page is for this machine alone")

    class WithHeaders(OutputTransform):
        def transform_first_chunk(
            self, status_code: int, headers: Any, chunk: bytes, finishing: bool
        ) -> tuple[int, Any, bytes]:
            for name, value in HEADERS.items():
                headers[name] = value
            headers.pop("Access-Control-Allow-Origin", None)
            return status_code, headers, chunk

    server._tornado.add_handlers(OTHER_HOSTS, [(r".*", RefusedRequest)])
    server._tornado.add_handlers(r".*", [(r"/autoload\.js", RefusedRequest)])
    server._tornado.add_transform(WithHeaders)
