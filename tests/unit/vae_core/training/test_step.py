from __future__ import annotations

import copy
import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from tests.unit.vae_core.models import images, model_of
from vae_core.config import ObjectiveConfig
from vae_core.likelihoods.registry import LIKELIHOODS
from vae_core.noise import StepNoise
from vae_core.objectives.objectives import LossTerms, Objective
from vae_core.training.step import NonFiniteLoss, Stepper, learning_rate, train_step

GOLDEN = Path(__file__).parents[3] / "golden" / "losses.json"
WARM = {"kl_warmup_steps": 5}
PLAIN = {"kind": "reconstruction"}
CODE = {"posterior": "deterministic", "code": "sigmoid"}
# name → network, likelihood, what else the model is, the objective.
TRACES: dict[str, tuple[str, str, dict, dict]] = {
    f"{network}-{kind}": (network, kind, {}, WARM)
    for network in ("mlp", "conv", "residual", "linear")
    for kind in LIKELIHOODS
} | {
    "beta": ("mlp", "gaussian", {}, {"beta": 4.0}),
    "stochastic-bits": ("mlp", "bernoulli", {"binarisation": "stochastic"}, {}),
    "tied": ("mlp", "gaussian", {"tied": True, "posterior": "deterministic"}, PLAIN),
    "iwae-residual": ("residual", "gaussian", {}, {"kind": "importance_weighted", "samples": 3}),
    "free-bits": ("mlp", "gaussian", {}, {"free_bits": 0.2}),
    "capacity": ("mlp", "gaussian", {}, {"kind": "capacity", "capacity": 2, "capacity_steps": 9}),
    "beta-tc": ("mlp", "gaussian", {}, {"kind": "beta_tc", "beta": 4.0}),
    "iwae": ("mlp", "bernoulli", {}, {"kind": "importance_weighted", "samples": 5}),
    "score-function": ("mlp", "bernoulli", {}, {"kind": "score_function", "samples": 8}),
    "plain": ("mlp", "gaussian", {"posterior": "deterministic"}, PLAIN),
    "sparse": ("mlp", "gaussian", CODE, PLAIN | {"sparsity": 3.0}),
    "masked": ("conv", "gaussian", CODE, PLAIN | {"corruption": "mask", "corruption_amount": 0.3}),
    "denoising": ("mlp", "gaussian", {}, {"corruption": "gaussian", "corruption_amount": 0.2}),
    "contractive": ("mlp", "gaussian", CODE, PLAIN | {"contraction": 0.5}),
    "contractive-probes": ("mlp", "gaussian", CODE, PLAIN | {"contraction": 0.5, "probes": 2}),
    "weight-decay": ("mlp", "gaussian", CODE, PLAIN | {"weight_decay": 0.1}),
}


def trace(name: str, steps: int = 12) -> list[float]:
    """recon_nll + KL per image, and where more than those is minimised, the loss."""
    network, likelihood, options, settings = TRACES[name]
    torch.manual_seed(0)
    model, x = model_of(network, likelihood, **options), images(32)
    objective = Objective(model, ObjectiveConfig(**settings), dataset_size=1000)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=5e-3, weight_decay=0.0)
    losses = []
    for step in range(steps):
        noise = StepNoise(seed=0, step=step, batch=32)
        sums = train_step(objective, optimizer, x, noise, step=step)
        total = sums.recon_nll + sums.kl if settings is WARM else sums.loss
        losses.append(total / sums.images)
    return losses


@pytest.mark.parametrize("name", TRACES)
def test_golden_losses(name: str) -> None:
    """A refactor reproduces these; a change of the maths says so and writes them anew."""
    torch.set_num_threads(1)
    found = trace(name)
    assert found[-1] < found[0]
    assert found == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=1e-5, abs=1e-5)


def test_a_non_finite_loss_stops_before_the_optimiser_moves_anything() -> None:
    model, x = model_of("mlp", "gaussian"), images(4)
    x[2, 0, 0, 0] = math.nan
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    objective, noise = Objective(model, ObjectiveConfig()), StepNoise(seed=0, step=7, batch=4)
    with pytest.raises(NonFiniteLoss, match="step 7"):
        train_step(objective, optimizer, x, noise, step=7)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_sum_that_is_not_finite_stops_the_step_although_its_gradient_is() -> None:
    """2·10³⁸ nats an image, two images: the sum is beyond float32, no rank but this one sees it."""
    weight = torch.nn.Parameter(torch.ones(()))

    def forward(x: torch.Tensor, noise: StepNoise, step: int) -> LossTerms:
        nats_N = 2e38 + weight * torch.ones(2)
        return LossTerms(nats_N, nats_N.detach(), torch.zeros(2), torch.zeros(()))

    optimizer = torch.optim.AdamW([weight], lr=1.0)
    noise = StepNoise(seed=0, step=0, batch=2)
    with pytest.raises(NonFiniteLoss, match="loss inf"):
        train_step(forward, optimizer, torch.zeros(2, 1, 1, 1), noise, step=0)
    assert weight.item() == 1.0


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, total_steps=100, base=1.0, warmup_steps=10) for step in range(101)]
    assert rates[0] == 0.1
    assert rates[9] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0.0)


@pytest.mark.parametrize("parts", [2, 3, 40])
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1}, {"corruption": "mask"}])
def test_gradients_of_parts_add_up_to_the_whole_batch_s(parts: int, settings: dict) -> None:
    if settings.get("corruption"):
        settings = settings | {"corruption_amount": 0.3}
    x, found = images(32), []
    for micro_batches in (1, parts):
        torch.manual_seed(0)
        model = model_of("mlp", "bernoulli", binarisation="stochastic")
        objective = Objective(model, ObjectiveConfig(**settings))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        stepper = Stepper(
            forward=objective, optimizer=optimizer, micro_batches=micro_batches, clip_norm=50.0
        )
        sums = [stepper.step(x, StepNoise(seed=0, step=s, batch=32), s) for s in range(3)]
        found.append((sums, [p.detach().clone() for p in model.parameters()]))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_step_that_nobody_waits_for_is_the_same_step_and_skips_what_is_not_finite() -> None:
    x = images(16)
    states = []
    for unseen in (False, True):
        torch.manual_seed(0)
        model = model_of("mlp", "gaussian")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        stepper = Stepper(forward=Objective(model, ObjectiveConfig()), optimizer=optimizer)
        for step in range(4):
            noise = StepNoise(seed=0, step=step, batch=16)
            bad = step == 2
            given = x * math.nan if bad else x
            if unseen:
                sums = stepper.step_unseen(given, noise, step)
                assert bool(torch.isfinite(sums).all()) != bad
            elif bad:
                with pytest.raises(NonFiniteLoss):
                    stepper.step(given, noise, step)
            else:
                stepper.step(given, noise, step)
        states.append((model.state_dict(), optimizer.state_dict()["state"]))
    (weights, state), (others, other_state) = states
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name
    for index, held in state.items():
        for key, value in held.items():
            assert torch.equal(value, other_state[index][key]), key


def test_bfloat16_steps_learn_and_keep_weights_in_float32() -> None:
    x, losses = images(32), {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = model_of("conv", "gaussian")
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        objective = Objective(model, ObjectiveConfig())
        stepper = Stepper(forward=objective, optimizer=optimizer, precision=precision)
        found = [stepper.step(x, StepNoise(seed=0, step=s, batch=32), s).loss for s in range(12)]
        assert found[-1] < found[0]
        assert all(p.dtype == torch.float32 for p in model.parameters())
        losses[precision] = found[-1]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]
