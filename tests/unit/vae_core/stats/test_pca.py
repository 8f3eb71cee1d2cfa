"""PCA without a covariance matrix, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from tests.unit.vae_core.models import images
from vae_core.stats.pca import PrincipalAxes


@pytest.mark.parametrize(("count", "dim"), [(200, 5), (40, 39), (300, 72)])
def test_it_is_that_of_scikit_learn(count: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x_NP = images(count).flatten(1) + 0.1 * torch.randn(count, 72, generator=generator)
    found = PrincipalAxes.fit(x_NP, dim)
    known = PCA(dim, svd_solver="full").fit(x_NP.numpy())
    ours, theirs = found.project(x_NP).numpy(), known.transform(x_NP.numpy())
    np.testing.assert_allclose(ours.var(axis=0), theirs.var(axis=0), rtol=2e-2, atol=1e-6)
    # The subspace, whatever the signs.
    np.testing.assert_allclose((ours**2).sum(1), (theirs**2).sum(1), rtol=0.02, atol=1e-4)
    axes = found.axes_PD
    np.testing.assert_allclose(axes.T @ axes, np.eye(dim), atol=1e-4)
    assert torch.equal(PrincipalAxes.fit(x_NP, dim).axes_PD, axes)


def test_more_axes_than_there_can_be_are_refused() -> None:
    with pytest.raises(ValueError, match="9 axes of 8 images"):
        PrincipalAxes.fit(torch.randn(8, 20), 9)
