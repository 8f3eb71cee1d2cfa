"""A web page of somebody else's in the operator's browser: what it gets a Prefect server to do."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import threading
from collections.abc import Iterator
from typing import Any

from selenium import webdriver

from tests.limits import SOON_S

HOST = "stranger.test"  # is this machine, for the browser: `browsing(…, knows=HOST)`
# What the page knows: the API's address and, at worst, a deployment's id. What it wants: that the
# worker runs its command. Each way answers what came of it.
ATTACK = """
    const [api, deployment, command] = arguments, done = arguments[arguments.length - 1];
    const wanted = JSON.stringify({
        state: {type: 'SCHEDULED'}, name: 'of a stranger', job_variables: {command}
    });
    const start = `${api}/deployments/${deployment}/create_flow_run`;
    const json = {'content-type': 'application/json'};
    async function tried(action) {
        try { return await action(); } catch (error) { return 'blocked'; }
    }
    async function permitted() {
        const found = await fetch(`${api}/csrf-token?client=stranger`);
        const headers = {...json};
        if (found.ok) {
            headers['prefect-csrf-token'] = (await found.json()).token;
            headers['prefect-csrf-client'] = 'stranger';
        }
        return headers;
    }
    async function read() {
        const asked = {method: 'POST', headers: await permitted(), body: '{}'};
        return (await fetch(`${api}/deployments/filter`, asked)).status;
    }
    async function write() {
        const headers = await permitted();
        return (await fetch(start, {method: 'POST', headers, body: wanted})).status;
    }
    async function blind() {
        await fetch(start, {method: 'POST', mode: 'no-cors', body: new Blob([wanted])});
        return 'sent';
    }
    function listen() {
        return new Promise(resolve => {
            const socket = new WebSocket(api.replace('http', 'ws') + '/events/out', 'prefect');
            socket.onopen = () => socket.send(JSON.stringify({type: 'auth', token: null}));
            socket.onmessage = message => {
                resolve(JSON.parse(message.data).type === 'auth_success' ? 'heard' : 'refused');
                socket.close();
            };
            socket.onclose = () => resolve('closed');
        });
    }
    (async () => done({
        read: await tried(read), write: await tried(write), blind: await tried(blind),
        listen: await tried(listen),
    }))();
"""


@dataclasses.dataclass(frozen=True)
class Came:
    """Of an attack: the answers that the page could see, or what stood in its way."""

    read: int | str
    write: int | str
    blind: str
    listen: str


def attack(browser: webdriver.Chrome, page: str, api: str, deployment: str, command: str) -> Came:
    """From a page at this address."""
    browser.get(page)
    browser.set_script_timeout(SOON_S)
    told: dict[str, Any] = browser.execute_async_script(ATTACK, api, deployment, command)
    return Came(**told)


@contextlib.contextmanager
def strangers_page() -> Iterator[str]:
    """Its address, of another origin and another site than any server of ours."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>Kittens</title>")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://{HOST}:{server.server_address[1]}/"
        finally:
            server.shutdown()
