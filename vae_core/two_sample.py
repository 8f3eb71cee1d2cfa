"""Two samples held against each other: do tonight's images come from where the reference came from?

Each test is a statistic of a labelling, arrivals against reference, and all of them see the same
random relabellings. So their p-values hold whatever the distribution is, as long as blocks (a
source's images of one hour, say) could have come on either side, and the smallest of them, held
against the smallest of each relabelling, is one p-value for all (nonparametric combination: Pesarin
& Salmaso 2010, "Permutation tests for complex data", chapter 4). Images of a block stay together:
what they share is no evidence.

The tests: Hotelling's T² (a shift of the mean); maximum mean discrepancy with a Gaussian kernel
(Gretton et al. 2012, "A kernel two-sample test"); a classifier's held-out separation (Lopez-Paz &
Oquab 2017, "Revisiting classifier two-sample tests"), here a ridge regression, whose predictions
are linear in the labels, so that each relabelling costs a product and not a fit; Kolmogorov–Smirnov
in each dimension.

Legend: N images of both samples, D dimensions, L labellings, the first of them the true one.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

FOLDS = 5
WAVES = 200  # random Fourier features of the classifier
RIDGE = 1e-2  # of the classifier, in shares of its features' mean square
LEAST = 1e-4  # that a statistic of scaled data can sensibly be: below lies rounding alone
FLOOR = 1e-6  # of a variance, in shares of the largest


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoSample:
    """p_value: of all tests together. tests: each one's own. effects: how large a change is.

    ks_D, ks_p_D: the largest difference of the two distribution functions in each dimension, and
    its p-value, adjusted for all dimensions (Westfall & Young's maximum, which holds the error of
    the family as Holm's procedure does, without D times as many relabellings).
    smallest_p: that any data could have got, by the number of relabellings.
    """

    p_value: float
    tests: dict[str, float]
    effects: dict[str, float]
    ks_D: np.ndarray
    ks_p_D: np.ndarray
    smallest_p: float


def two_sample(
    arrivals_ND: np.ndarray,
    reference_ND: np.ndarray,
    *,
    seed: int,
    arrival_blocks_N: np.ndarray | None = None,
    reference_blocks_N: np.ndarray | None = None,
    relabellings: int = 999,
) -> TwoSample:
    """Both samples against each other, by all tests.

    blocks: a number for each image, of what it came with; each image alone if None. Raises
    ValueError where a side has fewer than two images or blocks, or a value is not finite.
    """
    x_ND = np.concatenate([arrivals_ND, reference_ND]).astype(np.float64)
    if not np.isfinite(x_ND).all():
        raise ValueError("two samples: values have to be finite")
    is_arrival_N = np.arange(len(x_ND)) < len(arrivals_ND)
    blocks_N = _blocks(is_arrival_N, arrival_blocks_N, reference_blocks_N)
    generator = np.random.default_rng(seed)
    w_NL = weights(is_arrival_N, blocks_N, relabellings, generator)
    scaled_ND = _scaled(x_ND)
    ks_DL = ks_statistics(w_NL, x_ND)
    statistics = {
        "hotelling": mean_shift(w_NL, scaled_ND),
        "mmd": discrepancy(w_NL, scaled_ND),
        "classifier": separation(w_NL, scaled_ND, blocks_N, generator),
        "ks": ks_DL.max(axis=0),
    }
    ranks = {name: _shares_above(values_L) for name, values_L in statistics.items()}
    smallest_L = np.min(list(ranks.values()), axis=0)
    highest_L = ks_DL.max(axis=0)
    return TwoSample(
        p_value=float(np.mean(smallest_L <= smallest_L[0])),
        tests={name: float(values_L[0]) for name, values_L in ranks.items()},
        effects={
            "mean_shift_sd": float(np.abs(w_NL[:, 0] @ scaled_ND).max()),
            "mmd": math.sqrt(max(0.0, float(statistics["mmd"][0]))),
            "ks": float(highest_L[0]),
        },
        ks_D=ks_DL[:, 0],
        ks_p_D=np.array([np.mean(highest_L >= one - 1e-12) for one in ks_DL[:, 0]]),
        smallest_p=1.0 / (1 + relabellings),
    )


def weights(
    is_arrival_N: np.ndarray,
    blocks_N: np.ndarray,
    relabellings: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """(N, 1 + relabellings): 1 / arrivals where an image counts as one, else -1 / reference.

    So that a column times the data is a difference of means. A relabelling gives as many blocks to
    the arrivals as they have.
    """
    names, of_N = np.unique(blocks_N, return_inverse=True)
    arrives_B = np.zeros(len(names), bool)
    arrives_B[of_N[is_arrival_N]] = True
    if min(arrives_B.sum(), (~arrives_B).sum()) < 2:
        raise ValueError("two samples: each side needs two images, in two blocks")
    drawn_LB = generator.permuted(np.tile(arrives_B, (relabellings, 1)), axis=1)
    labels_NL = np.vstack([arrives_B, drawn_LB])[:, of_N].T
    counts_L = labels_NL.sum(axis=0)
    return np.where(labels_NL, 1.0 / counts_L, -1.0 / (len(of_N) - counts_L))


def mean_shift(w_NL: np.ndarray, x_ND: np.ndarray) -> np.ndarray:
    """(L,): Hotelling's T², but for a monotone map: with the covariance of both samples together,
    which no relabelling changes."""
    centred_ND = x_ND - x_ND.mean(axis=0)
    values_D, vectors_DD = np.linalg.eigh(centred_ND.T @ centred_ND / len(x_ND))
    kept_D = values_D > FLOOR * max(values_D.max(), 1e-300)
    whitened_NK = centred_ND @ vectors_DD[:, kept_D] / np.sqrt(values_D[kept_D])
    return np.square(whitened_NK.T @ w_NL).sum(axis=0)


def discrepancy(w_NL: np.ndarray, x_ND: np.ndarray) -> np.ndarray:
    """(L,): squared maximum mean discrepancy, a Gaussian kernel of the median distance."""
    square_N = np.square(x_ND).sum(axis=1)
    distance_NN = np.maximum(square_N[:, None] + square_N - 2.0 * x_ND @ x_ND.T, 0.0)
    median = float(np.median(distance_NN[np.triu_indices(len(x_ND), 1)]))
    kernel_NN = np.exp(-distance_NN / max(median, 1e-300))
    return np.einsum("nl,nl->l", w_NL, kernel_NN @ w_NL)


def separation(
    w_NL: np.ndarray, x_ND: np.ndarray, blocks_N: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """(L,): how far the classifier's held-out predictions of the two sides lie apart.

    Folds are of whole blocks.
    """
    names, of_N = np.unique(blocks_N, return_inverse=True)
    fold_N = generator.permutation(np.arange(len(names)) % min(FOLDS, len(names)))[of_N]
    features_NF = _features(x_ND, generator)
    told_NL = np.empty_like(w_NL)
    for fold in range(fold_N.max() + 1):
        out_N = fold_N == fold
        seen_NF = features_NF[~out_N]
        square_FF = seen_NF.T @ seen_NF
        square_FF[np.diag_indices_from(square_FF)] += RIDGE * np.trace(square_FF) / len(square_FF)
        told_NL[out_N] = features_NF[out_N] @ np.linalg.solve(square_FF, seen_NF.T @ w_NL[~out_N])
    return np.einsum("nl,nl->l", w_NL, told_NL)


def _features(x_ND: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(N, 1 + D + WAVES): linear ones, and cosines whose products are near a Gaussian kernel
    (Rahimi & Recht 2007, "Random features for large-scale kernel machines")."""
    scale = math.sqrt(x_ND.shape[1])
    angles_NF = x_ND @ generator.standard_normal((x_ND.shape[1], WAVES)) / scale
    waves_NF = np.cos(angles_NF + generator.uniform(0, 2 * math.pi, WAVES))
    return np.hstack([np.ones((len(x_ND), 1)), x_ND, waves_NF])


def ks_statistics(w_NL: np.ndarray, x_ND: np.ndarray) -> np.ndarray:
    """(D, L): the largest difference of the two distribution functions, in each dimension."""
    found_DL = np.empty((x_ND.shape[1], w_NL.shape[1]))
    for d, values_N in enumerate(x_ND.T):
        order_N = np.argsort(values_N, kind="stable")
        sorted_N = values_N[order_N]
        # Among equal values the functions are compared after the last one.
        ends_N = np.append(sorted_N[1:] != sorted_N[:-1], True)
        found_DL[d] = np.abs(np.cumsum(w_NL[order_N], axis=0)[ends_N]).max(axis=0)
    return found_DL


def _shares_above(values_L: np.ndarray) -> np.ndarray:
    """(L,): of each labelling, the share of all that are at least as extreme, itself among them."""
    # Equal labellings differ in the last digit.
    rounded_L = np.round(values_L / max(np.abs(values_L).max(), LEAST), 12)
    below_L = np.searchsorted(np.sort(rounded_L), rounded_L, side="left")
    return (len(values_L) - below_L) / len(values_L)


def _scaled(x_ND: np.ndarray) -> np.ndarray:
    """Each dimension with mean 0 and variance 1; one that does not vary is 0."""
    centred_ND = x_ND - x_ND.mean(axis=0)
    deviation_D = centred_ND.std(axis=0)
    return centred_ND / np.where(deviation_D > 0, deviation_D, 1.0)


def _blocks(
    is_arrival_N: np.ndarray, arrivals_N: np.ndarray | None, reference_N: np.ndarray | None
) -> np.ndarray:
    """A number for each block; those of the two sides are never the same."""
    count = int(is_arrival_N.sum())
    ours = np.arange(count) if arrivals_N is None else np.unique(arrivals_N, return_inverse=True)[1]
    theirs = (
        np.arange(len(is_arrival_N) - count)
        if reference_N is None
        else np.unique(reference_N, return_inverse=True)[1]
    )
    return np.concatenate([ours, theirs + len(is_arrival_N)])
