from __future__ import annotations

import torch

from tests.unit.vae_core.models import model_of
from vae_core.training.ema import WeightAverage


def test_the_average_is_the_recurrence_s() -> None:
    model = model_of("mlp", "gaussian")
    average = WeightAverage(model, 0.9)
    expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for step in range(200):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    for name, value in average.average.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_the_model_has_it_for_weights_meanwhile() -> None:
    model = model_of("mlp", "gaussian")
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    live = {n: p.detach().clone() for n, p in model.named_parameters()}
    held = {n: v.clone() for n, v in average.average.items()}
    with average.in_place():
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, held[name])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, live[name])
        assert torch.equal(average.average[name], held[name])
