"""torch.compile and eager give the same numbers, to 1e-5: every network, every likelihood."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.unit.vae_core.models import images, model_of
from vae_core.config import ObjectiveConfig
from vae_core.likelihoods import LIKELIHOODS
from vae_core.networks import ENCODERS
from vae_core.noise import StepNoise
from vae_core.objectives import LossTerms, Objective

pytestmark = pytest.mark.integration

# Without a C++ compiler inductor cannot run; the graph is captured and differentiated all the same.
BACKEND = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"
CASES: list[tuple[str, str, dict, dict]] = [
    *((network, "gaussian", {}, {}) for network in ENCODERS),
    *(("mlp", kind, {}, {}) for kind in LIKELIHOODS if kind != "gaussian"),
    ("mlp", "gaussian", {}, {"kind": "importance_weighted", "samples": 3}),
    ("mlp", "gaussian", {}, {"kind": "beta_tc", "beta": 3.0}),
    ("mlp", "gaussian", {"posterior": "deterministic", "tied": True}, {"kind": "reconstruction"}),
]


class Pure(torch.nn.Module):
    """The loss as a function of the images alone: the noise is that of one step."""

    def __init__(self, objective: Objective, noise: StepNoise) -> None:
        super().__init__()
        self.objective = objective
        self.noise = noise

    def forward(self, x: torch.Tensor) -> LossTerms:
        return self.objective(x, self.noise, 0)


@pytest.mark.parametrize(("network", "likelihood", "options", "settings"), CASES)
def test_compiled_and_eager_agree(network, likelihood, options, settings) -> None:
    torch.set_num_threads(1)
    torch._dynamo.reset()
    model, x = model_of(network, likelihood, shape=(17, 23, 2), **options), images(4, (17, 23, 2))
    module = Pure(
        Objective(model, ObjectiveConfig(**settings), dataset_size=9),
        StepNoise(seed=0, step=0, batch=4),
    )
    parameters = [p for p in model.parameters() if p.requires_grad]

    def run(function) -> tuple[LossTerms, tuple[torch.Tensor, ...]]:
        model.likelihood.load_state_dict(state)
        terms = function(x)
        return terms, torch.autograd.grad(terms.loss_N.sum(), parameters, allow_unused=True)

    state = {name: value.clone() for name, value in model.likelihood.state_dict().items()}
    eager, slow = run(module)
    compiled, fast = run(torch.compile(module, backend=BACKEND))
    torch.testing.assert_close(compiled.loss_N, eager.loss_N, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(compiled.kl_N, eager.kl_N, rtol=1e-5, atol=1e-5)
    for a, b in zip(fast, slow, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            scale = b.abs().max().item()
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, scale))
