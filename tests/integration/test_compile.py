"""torch.compile and eager give the same numbers, to 1e-5: every network, every likelihood."""

from __future__ import annotations

import copy
import hashlib
import shutil

import numpy as np
import pytest
import torch

from jobs.bundles import bundle
from jobs.bundles.device import place
from jobs.bundles.manifest import Compute
from jobs.engine import runner
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.tables import catalog
from tests.faults.test_kills import ROUNDS
from tests.helpers import write_source
from tests.inline import InlineEmbed, InlineStage, InlineTrain
from tests.unit.vae_core.models import images, model_of
from vae_core.config import ObjectiveConfig
from vae_core.likelihoods.registry import LIKELIHOODS
from vae_core.networks.plain import ENCODERS
from vae_core.noise import StepNoise
from vae_core.objectives.objectives import LossTerms, Objective
from vae_core.scores.per_image import Scorer

pytestmark = pytest.mark.integration

# Without a C++ compiler inductor cannot run; the graph is captured and differentiated all the same.
BACKEND = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"
NETWORKS = [(network, "gaussian", {}, {}) for network in ENCODERS]
OTHERS: list[tuple[str, str, dict, dict]] = [
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


# Seconds of C++ compiler each: without `make faults` the others' graphs run as they were captured.
@pytest.mark.parametrize(
    ("backend", "network", "likelihood", "options", "settings"),
    [
        *((BACKEND, *case) for case in NETWORKS),
        (BACKEND, "mlp", "logistic_mixture", {}, {}),  # of all of them the most arithmetic
        *((BACKEND if ROUNDS > 1 else "aot_eager", *case) for case in OTHERS),
    ],
)
def test_compiled_and_eager_agree(backend, network, likelihood, options, settings) -> None:
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
    compiled, fast = run(torch.compile(module, backend=backend))
    torch.testing.assert_close(compiled.loss_N, eager.loss_N, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(compiled.kl_N, eager.kl_N, rtol=1e-5, atol=1e-5)
    for a, b in zip(fast, slow, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            scale = b.abs().max().item()
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, scale))


@pytest.mark.parametrize("kind", ENCODERS)
def test_each_network_compiles_as_one_graph_and_scores_agree(kind) -> None:
    torch.set_num_threads(1)
    torch._dynamo.reset()
    model = model_of(kind, "gaussian", shape=(17, 23, 2)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 17, 23, 2), dtype=np.uint8)
    ids = [hashlib.sha256(bytes([row])).hexdigest() for row in range(20)]

    def scored(compute: Compute):
        placed = place(copy.deepcopy(model), compute)
        return Scorer(model=placed, batch_size=8, samples=3, seed=1).score(pixels, ids)

    eager = scored(Compute(batch_size=8))
    torch._dynamo.utils.counters.clear()
    compiled = scored(Compute(batch_size=8, compiled=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]
    np.testing.assert_allclose(compiled.mean_ND, eager.mean_ND, rtol=1e-5, atol=1e-6)
    for name, values in eager.scores.items():
        if values is not None:
            np.testing.assert_allclose(compiled.scores[name], values, rtol=1e-5, err_msg=name)


def test_a_model_trained_compiled_on_a_cpu_is_calibrated_as_it_is_embedded(tmp_path) -> None:
    torch._dynamo.reset()
    write_source(tmp_path / "source" / "a.parquet", range(300))
    lake = LakePaths((tmp_path / "lake").as_uri())
    runner.run(InlineStage(lake, tmp_path / "source"))
    runner.run(InlineTrain(lake, epochs=1, run={"compile": True}))
    runner.run(InlineEmbed(lake))
    held = bundle.load(lake, *catalog.resolve_model(lake, "m"))
    assert not held.about["scoring"]["compiled"]
    rows = views.sql(lake, "FROM embeddings WHERE model_split = 'calibration'")
    scores = rows[held.about["decision_score"]].to_numpy()
    assert np.array_equal(np.sort(scores), held.calibration_scores)
    valid = views.sql(lake, "SELECT calibration_valid FROM batches")
    assert valid["calibration_valid"].to_pylist() == [True]
