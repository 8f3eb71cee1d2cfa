"""Process groups of several hosts: Gloo speaks on the network that Ray uses.

Gloo takes the interface that the host's name resolves to, and many systems (Debian's) resolve it to
loopback: workers of different hosts then call themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

log = logging.getLogger("latentlake")

GLOO = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
LEAVE_S = 30.0


@dataclasses.dataclass
class ProcessGroup(BackendConfig):
    """Torch's process group of Ray Train's workers.

    As `ray.train.torch.TorchConfig` makes it (2.60), but that brings torch to the driver and to the
    controller, a second and a half each, which neither needs.
    """

    kinds: str  # as torch.distributed.init_process_group takes them: gloo, cpu:gloo,cuda:nccl

    @property
    def backend_cls(self) -> type[Backend]:
        """Return the class that sets it up, for Ray Train."""
        return _Backend

    @property
    def train_func_context(self) -> Callable[[], Any]:  # pyright: ignore
        """Return the context that trainings run in, for Ray Train."""
        return _on_own_device


class _Backend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, ProcessGroup)
        address, port = worker_group.execute_single(0, get_address_and_port)
        size, kinds = len(worker_group), backend_config.kinds
        ray.get(  # pyright: ignore[reportCallIssue]
            [  # pyright: ignore[reportArgumentType]
                worker_group.execute_single_async(rank, _join, kinds, rank, size, address, port)
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        left = worker_group.execute_async(_leave, destroy=len(worker_group) > 1)
        try:
            ray.get(left, timeout=LEAVE_S)  # pyright: ignore
        except GetTimeoutError:
            log.warning("the process group of a training did not end within %.0f s", LEAVE_S)


def _join(kinds: str, rank: int, size: int, address: str, port: int) -> None:
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    use_rays_interface()
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(kinds, rank, size, "env://")


def _leave(destroy: bool) -> None:
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=destroy)


@contextlib.contextmanager
def _on_own_device() -> Iterator[None]:
    """Of the worker: its GPU is the current one, where it has one."""
    from ray.train.torch.config import TorchConfigContextManager

    with TorchConfigContextManager():
        yield


def use_rays_interface() -> None:
    """Where the environment names none."""
    found = interface_of(ray.util.get_node_ip_address())
    if found is not None:
        os.environ.setdefault(GLOO, found)


def interface_of(address: str) -> str | None:
    """Return the interface that has an IPv4 address; None where none has, or that cannot be
    known."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
            except OSError:
                continue  # it has no address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
