"""Process groups of several hosts: Gloo speaks on the network that Ray uses.

Gloo takes the interface that the host's name resolves to, and many systems (Debian's) resolve it to
loopback: workers of different hosts then call themselves.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import socket
import struct

import ray
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

GLOO = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


@dataclasses.dataclass
class OnRaysNetwork(TorchConfig):
    """Ray Train's process group, Gloo on the interface that has the node's address."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: BaseWorkerGroup, backend_config: TorchConfig) -> None:
        worker_group.execute(use_rays_interface)
        super().on_start(worker_group, backend_config)


def use_rays_interface() -> None:
    """Where the environment names none."""
    found = interface_of(ray.util.get_node_ip_address())
    if found is not None:
        os.environ.setdefault(GLOO, found)


def interface_of(address: str) -> str | None:
    """The interface that has an IPv4 address; None where none has, or that cannot be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            try:
                told = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, request)
            except OSError:
                continue  # it has no address
            if socket.inet_ntoa(told[20:24]) == address:
                return name
    return None
