"""Several hosts on one machine: network namespaces on a switch, each with an address of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence

CLONE_NEWNET = 0x40000000
NET = "10.77.31"  # of no other network: the namespaces see none


class Hosts:
    def __init__(self, names: Sequence[str]) -> None:
        prefix = f"ll{os.getpid()}"
        self.switch = f"{prefix}-switch"
        self.namespaces = {name: f"{prefix}-{name}" for name in names}
        self.addresses = {name: f"{NET}.{number}" for number, name in enumerate(names, 1)}

    def make(self) -> None:
        _ip("netns", "add", self.switch)
        _in(self.switch, "link", "add", "name", "bridge", "type", "bridge")
        _in(self.switch, "link", "set", "dev", "bridge", "up")
        for name, space in self.namespaces.items():
            _ip("netns", "add", space)
            _in(self.switch, *f"link add name {name} type veth peer name net netns {space}".split())
            _in(self.switch, "link", "set", "dev", name, "master", "bridge", "up")
            _in(space, "address", "add", f"{self.addresses[name]}/24", "dev", "net")
            _in(space, "link", "set", "dev", "net", "up")
            _in(space, "link", "set", "dev", "lo", "up")

    def remove(self) -> None:
        for space in (*self.namespaces.values(), self.switch):
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)

    def inside(self, name: str, own: str | None = None) -> list[str]:
        """What to put before a command that runs there. own: a folder that is its own disk."""
        command = ["ip", "netns", "exec", self.namespaces[name]]
        if own is None:
            return command
        # Its mounts are its own, too; by Ray's sockets in a shared folder hosts would reach others.
        return [*command, "sh", "-c", f'mount -t tmpfs none {own} && exec "$@"', "sh"]

    def cut(self, name: str) -> None:
        """Takes its cable out: nobody is told, packets are lost."""
        _in(self.switch, "link", "set", "dev", name, "down")


@contextlib.contextmanager
def hosts(names: Sequence[str]) -> Iterator[Hosts]:
    """Raises OSError or CalledProcessError where this machine does not allow namespaces."""
    made = Hosts(names)
    try:
        made.make()
        yield made
    finally:
        made.remove()


@contextlib.contextmanager
def entered(namespace: str) -> Iterator[None]:
    """This thread and what it starts are on that host."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        _enter(libc, there)
        yield
    finally:
        _enter(libc, before)
        os.close(there)
        os.close(before)


def _enter(libc: ctypes.CDLL, namespace: int) -> None:
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def why_not() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if shutil.which("ip") is None:
        return "no `ip` command; install iproute2"
    try:
        with hosts(["a"]) as made, entered(made.namespaces["a"]):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", b"") or str(error).encode()
        return f"network namespaces are not allowed here: {told.decode().strip()}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _in(namespace: str, *arguments: str) -> None:
    _ip("-n", namespace, *arguments)
