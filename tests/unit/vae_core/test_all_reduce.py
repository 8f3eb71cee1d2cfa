"""Two real ranks over gloo: whatever the shares, the gradient is that of one whole batch."""

from __future__ import annotations

import multiprocessing as mp
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.limits import COMMAND_S
from tests.unit.vae_core.models import images, model_of
from vae_core.all_reduce import Peers
from vae_core.config import ObjectiveConfig
from vae_core.noise import StepNoise
from vae_core.objectives.objectives import Objective, total_loss

pytestmark = pytest.mark.slow

CODE = {"posterior": "deterministic", "code": "sigmoid"}
PLAIN = {"kind": "reconstruction"}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "elbo": ("gaussian", {}, {}),
    "stochastic-step-noise": ("gaussian", {}, {"corruption": "gaussian", "corruption_amount": 0.3}),
    "free-bits": ("gaussian", {}, {"free_bits": 0.05}),
    "beta-tc": ("gaussian", {}, {"kind": "beta_tc", "beta": 3.0}),
    "iwae": ("bernoulli", {}, {"kind": "importance_weighted", "samples": 3}),
    "score-function": ("bernoulli", {}, {"kind": "score_function", "samples": 3}),
    "optimal-sigma": ("optimal_gaussian", {}, {}),
    "sparse": ("gaussian", CODE, PLAIN | {"sparsity": 5.0}),
    "contractive": ("gaussian", CODE, PLAIN | {"contraction": 0.5}),
    "contractive-probes": ("gaussian", CODE, PLAIN | {"contraction": 0.5, "probes": 2}),
    "weight-decay": ("gaussian", CODE, PLAIN | {"weight_decay": 0.2}),
}
# The second share is smaller, and then empty.
SHARES = [(slice(0, 5), slice(5, 8)), (slice(0, 8), slice(8, 8))]


def gradients(name: str, positions: slice, peers: Peers) -> dict[str, torch.Tensor]:
    likelihood, options, settings = CASES[name]
    model = model_of("mlp", likelihood, **options).double()
    x = images(8).double()[positions]
    objective = Objective(model, ObjectiveConfig(**settings), dataset_size=100, peers=peers)
    forward = objective
    if peers.world_size > 1:
        forward = DistributedDataParallel(objective, broadcast_buffers=False)
    noise = StepNoise(seed=0, step=3, batch=8, positions=positions)
    terms = forward(x, noise, 3)
    total_loss(terms, global_count=8, world_size=peers.world_size).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found | dict(model.named_buffers())


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name in CASES:
        for i, shares in enumerate(SHARES):
            found = gradients(name, shares[rank], Peers(world_size=2))
            torch.save(found, f"{folder}/{name}-{i}-{rank}.pt")
    dist.barrier()
    # gloo's threads sometimes abort a process that takes them down in order, after the work.
    os._exit(0)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    context = mp.get_context("spawn")
    workers = [context.Process(target=rank_main, args=(rank, str(folder))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(COMMAND_S)
        assert worker.exitcode == 0
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_have_the_gradient_of_one_whatever_their_shares(name: str, ranks: Path) -> None:
    alone = gradients(name, slice(0, 8), Peers())
    assert any(value.abs().sum() > 0 for value in alone.values())
    for i in range(len(SHARES)):
        for rank in range(2):
            found = torch.load(ranks / f"{name}-{i}-{rank}.pt", weights_only=True)
            assert found.keys() == alone.keys()
            for key, value in alone.items():
                torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12, msg=f"{key}")
