"""Compare two samples: do tonight's images come from where the reference came from?

Each test is a statistic of a labelling, arrivals against reference, and all of them see the same
random permutations. So their p-values hold whatever the distribution is, as long as blocks (a
source's images of one hour, say) could have come on either side. All tests together give one
p-value: that of the strongest of them, compared with the strongest of each relabelling
(nonparametric combination: Pesarin & Salmaso 2010, "Permutation tests for complex data", chapter
4). Images of a block stay together: what they share is no evidence.

A permutation swaps blocks within pairs, which are drawn once. Where blocks could have come on
either side, that is as right as drawing from all. Where those of one side hold together more than
those of the other, it stays right as long as the difference of a pair is as likely to point one way
as the other: it is Student's test of the pairs' differences (Scheffé 1943, "On solutions of the
Behrens-Fisher problem"). Drawing from all, of as many blocks of both, gets the variance right but
takes it to be known from both sides where one alone has it all: of 12 blocks a side, Student's t of
11 degrees of freedom is compared with that of 22, which at a level of 1/600 is 2.5 times too often.

The tests: Hotelling's T² of the ranks' normal scores (a shift of the mean; a few blocks' mean of
squares is skewed, and no difference of such is as likely to point either way); maximum mean
discrepancy with a Gaussian kernel (Gretton et al. 2012, "A kernel two-sample test"); a classifier's
held-out separation (Lopez-Paz & Oquab 2017, "Revisiting classifier two-sample tests"), here a ridge
regression, whose predictions are linear in the labels, so that each permutation costs a product and
not a fit; Kolmogorov–Smirnov in each dimension. Each is made of each family of numbers that the
images have: their embeddings, their scores, and so on.

Legend: N images of both samples, D dimensions, L labellings, the first of them the true one.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping

import numpy as np

FOLDS = 5
WAVES = 200  # random Fourier features of the classifier
RIDGE = 1e-2  # of the classifier, in shares of its features' mean square
LEAST = 1e-4  # that a statistic of scaled data can sensibly be: below lies rounding alone
FLOOR = 1e-6  # of a variance, in shares of the largest
TAIL = 50  # one labelling in as many is in the tail, beyond which ranks tell too little
LEAST_TAIL = 10  # labellings in it
ROWS = 1000  # of a kernel at once
DIMENSIONS = 16  # at once, so that they stay in the processor's cache
TESTS = ("hotelling", "mmd", "classifier", "ks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestsOfSamples:
    """tests: the p-value of each. effects: how large each one's change is: the largest difference
    of means in standard deviations of a dimension, the root of the squared discrepancy, the AUROC
    of held-out predictions, the largest difference of distribution functions.

    ks_D, ks_p_D: that difference in each dimension, and its p-value, adjusted for all dimensions of
    the family (Westfall & Young's maximum, which holds the error of the family as Holm's procedure
    does, without D times as many permutations).
    """

    tests: dict[str, float]
    effects: dict[str, float]
    ks_D: np.ndarray
    ks_p_D: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoSample:
    """p_value: of all tests of all families together. smallest_p: that any data could have got, by
    the number of permutations."""

    p_value: float
    families: dict[str, TestsOfSamples]
    smallest_p: float


def two_sample(
    families: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    seed: int,
    arrival_blocks_N: np.ndarray | None = None,
    reference_blocks_N: np.ndarray | None = None,
    relabellings: int = 999,
) -> TwoSample:
    """Both samples against each other, by all tests of all families.

    families: by name, arrivals and reference, (images, D) each: D may differ from family to family,
    the images are the same ones in the same order. blocks: a number for each image, of what it came
    with; each image alone if None. Raises ValueError where a side has fewer than two images or
    blocks, families differ in their images, or a value is not finite.
    """
    is_arrival_N = _labels(families)
    blocks_N = _blocks(is_arrival_N, arrival_blocks_N, reference_blocks_N)
    generator = np.random.default_rng(seed)
    strata_N = strata(is_arrival_N, blocks_N, generator)
    w_NL = weights(is_arrival_N, blocks_N, strata_N, relabellings, generator)
    found: dict[str, TestsOfSamples] = {}
    strongest_L = np.zeros(w_NL.shape[1])
    for name, pair in families.items():
        x_ND = np.concatenate(pair).astype(np.float64)
        if not np.isfinite(x_ND).all():
            raise ValueError(f"two samples: values have to be finite, {name}'s are not all")
        found[name], told_L = _family(w_NL, x_ND, strata_N, generator)
        strongest_L = np.maximum(strongest_L, told_L)
    return TwoSample(
        p_value=float(np.mean(strongest_L >= strongest_L[0])),
        families=found,
        smallest_p=1.0 / (1 + relabellings),
    )


def _labels(families: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    sizes = {(len(arrivals), len(reference)) for arrivals, reference in families.values()}
    if len(sizes) != 1:
        raise ValueError(f"two samples: families need the same images, these have {sorted(sizes)}")
    ((arrivals, reference),) = sizes
    return np.arange(arrivals + reference) < arrivals


def _family(
    w_NL: np.ndarray, x_ND: np.ndarray, strata_N: np.ndarray, generator: np.random.Generator
) -> tuple[TestsOfSamples, np.ndarray]:
    """One family's tests, and the strongest evidence among them, (L,)."""
    scaled_ND = _scaled(x_ND)
    ks_DL = ks_statistics(w_NL, x_ND)
    separation_L, auroc = separation(w_NL, scaled_ND, strata_N, generator)
    found = {
        "hotelling": mean_shift(w_NL, normal_scores(x_ND)),
        "mmd": discrepancy(w_NL, scaled_ND, generator),
        "classifier": separation_L,
        "ks": ks_DL.max(axis=0),
    }
    rounded = {name: _rounded(values_L) for name, values_L in found.items()}
    highest_L = found["ks"]
    family = TestsOfSamples(
        tests={name: float(_shares_above(values_L)[0]) for name, values_L in rounded.items()},
        effects={
            "hotelling": float(np.abs(w_NL[:, 0] @ scaled_ND).max()),
            "mmd": math.sqrt(max(0.0, float(found["mmd"][0]))),
            "classifier": auroc,
            "ks": float(highest_L[0]),
        },
        ks_D=ks_DL[:, 0],
        ks_p_D=np.array([np.mean(highest_L >= one - 1e-12) for one in ks_DL[:, 0]]),
    )
    return family, np.max([evidence(values_L) for values_L in rounded.values()], axis=0)


def evidence(values_L: np.ndarray) -> np.ndarray:
    """(L,): -log of each labelling's p-value among all, so that tests can be combined.

    Ranks alone would tie the strongest labelling of each of many tests, and a night far beyond all
    permutations in one test would still be no better than those that happen to lead in another. So
    in the tail the p-value goes on as an exponential does that fits the tail's median (after
    Knijnenburg et al. 2009, "Fewer permutations, more accurate P-values"). How well it fits decides
    about power alone: all labellings are treated alike, the true one too, so that the combined
    p-value holds whatever the fit.
    """
    told_L = -np.log(_shares_above(values_L))
    count = max(LEAST_TAIL, len(values_L) // TAIL)
    if len(values_L) < 2 * count:
        return told_L
    start = np.partition(values_L, -count)[-count]
    beyond_L = values_L > start
    if not beyond_L.any():
        return told_L
    excess_L = values_L[beyond_L] - start
    told_L[beyond_L] = math.log(len(values_L) / count) + excess_L * (
        math.log(2.0) / np.median(excess_L)
    )
    return told_L


def strata(
    is_arrival_N: np.ndarray, blocks_N: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """(N,): the number of each image's stratum: one block of the side that has fewer, and an even
    share of the other's, all drawn at random. A pair where both have as many."""
    arrives_B, _ = _sides(is_arrival_N, blocks_N)
    ours, theirs = (generator.permutation(np.flatnonzero(arrives_B == s)) for s in (True, False))
    fewer = min(len(ours), len(theirs))
    if fewer < 2:
        raise ValueError("two samples: each side needs two images, in two blocks")
    stratum_B = np.empty(len(arrives_B), int)
    for side in (ours, theirs):
        stratum_B[side] = np.arange(len(side)) % fewer
    return stratum_B[np.unique(blocks_N, return_inverse=True)[1]]


def _sides(is_arrival_N: np.ndarray, blocks_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each block, whether it arrives; of each image, the place of its block."""
    names, of_N = np.unique(blocks_N, return_inverse=True)
    arrives_B = np.zeros(len(names), bool)
    arrives_B[of_N[is_arrival_N]] = True
    return arrives_B, of_N


def weights(
    is_arrival_N: np.ndarray,
    blocks_N: np.ndarray,
    strata_N: np.ndarray,
    relabellings: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """(N, 1 + permutations): 1 / arrivals where an image counts as one, else -1 / reference.

    So that a column times the data is a difference of means. A permutation draws anew, in each
    stratum, which of its blocks is the one of the side that has fewer.
    """
    arrives_B, of_N = _sides(is_arrival_N, blocks_N)
    stratum_B = np.empty(len(arrives_B), int)
    stratum_B[of_N] = strata_N
    order_B, size_S = np.argsort(stratum_B, kind="stable"), np.bincount(stratum_B)
    lone_LS = (generator.random((relabellings, len(size_S))) * size_S).astype(int)
    lone_LS = order_B[lone_LS + np.cumsum(size_S) - size_S]
    arrival_is_lone = arrives_B.sum() <= (~arrives_B).sum()
    drawn_LB = np.full((relabellings, len(arrives_B)), not arrival_is_lone)
    np.put_along_axis(drawn_LB, lone_LS, arrival_is_lone, axis=1)
    labels_NL = np.vstack([arrives_B, drawn_LB])[:, of_N].T
    counts_L = labels_NL.sum(axis=0)
    return np.where(labels_NL, 1.0 / counts_L, -1.0 / (len(of_N) - counts_L))


def mean_shift(w_NL: np.ndarray, x_ND: np.ndarray) -> np.ndarray:
    """(L,): Hotelling's T², but for a monotone map: with the covariance of both samples together,
    which no permutation changes."""
    centred_ND = x_ND - x_ND.mean(axis=0)
    values_D, vectors_DD = np.linalg.eigh(centred_ND.T @ centred_ND / len(x_ND))
    kept_D = values_D > FLOOR * max(values_D.max(), 1e-300)
    whitened_NK = centred_ND @ vectors_DD[:, kept_D] / np.sqrt(values_D[kept_D])
    return np.square(whitened_NK.T @ w_NL).sum(axis=0)


def discrepancy(w_NL: np.ndarray, x_ND: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(L,): squared maximum mean discrepancy, a Gaussian kernel of the median distance.

    Of many images the median is that of a random part; the kernel is never held whole.
    """
    part = generator.permutation(len(x_ND))[:ROWS]
    pairs = np.triu_indices(len(part), 1)
    scale = 1.0 / max(float(np.median(_square_distances(x_ND[part], x_ND[part])[pairs])), 1e-300)
    found_L = np.zeros(w_NL.shape[1])
    for start in range(0, len(x_ND), ROWS):
        rows = slice(start, start + ROWS)
        kernel_RN = np.exp(-scale * _square_distances(x_ND[rows], x_ND))
        found_L += np.einsum("rl,rl->l", w_NL[rows], kernel_RN @ w_NL)
    return found_L


def _square_distances(x_ND: np.ndarray, y_ND: np.ndarray) -> np.ndarray:
    square_N = np.square(x_ND).sum(axis=1)[:, None] + np.square(y_ND).sum(axis=1)
    return np.maximum(square_N - 2.0 * x_ND @ y_ND.T, 0.0)


def separation(
    w_NL: np.ndarray, x_ND: np.ndarray, strata_N: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, float]:
    """(L,): how far the classifier's held-out predictions of the two sides lie apart; and the share
    of pairs that they put in order, for the true labelling (AUROC).

    Folds are of whole strata, so that a swap leaves what is seen and predicted as it was.
    """
    count = strata_N.max() + 1
    fold_N = generator.permutation(np.arange(count) % min(FOLDS, count))[strata_N]
    features_NF = _features(x_ND, generator)
    told_NL = np.empty_like(w_NL)
    for fold in range(fold_N.max() + 1):
        out_N = fold_N == fold
        seen_NF = features_NF[~out_N]
        square_FF = seen_NF.T @ seen_NF
        square_FF[np.diag_indices_from(square_FF)] += RIDGE * np.trace(square_FF) / len(square_FF)
        told_KL = features_NF[out_N] @ np.linalg.solve(square_FF, seen_NF.T @ w_NL[~out_N])
        # What a fold has more of, the others have less of: its level tells the wrong way round.
        told_NL[out_N] = told_KL - told_KL.mean(axis=0)
    return np.einsum("nl,nl->l", w_NL, told_NL), _auroc(told_NL[:, 0], w_NL[:, 0] > 0)


def _auroc(told_N: np.ndarray, is_arrival_N: np.ndarray) -> float:
    """Mann & Whitney's, equal predictions counting half."""
    reference = np.sort(told_N[~is_arrival_N])
    below, upto = (np.searchsorted(reference, told_N[is_arrival_N], s) for s in ("left", "right"))
    return float(np.mean(below + upto) / (2 * len(reference)))


def _features(x_ND: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(N, 1 + D + WAVES): linear ones, and cosines whose products are near a Gaussian kernel
    (Rahimi & Recht 2007, "Random features for large-scale kernel machines")."""
    scale = math.sqrt(x_ND.shape[1])
    angles_NF = x_ND @ generator.standard_normal((x_ND.shape[1], WAVES)) / scale
    waves_NF = np.cos(angles_NF + generator.uniform(0, 2 * math.pi, WAVES))
    return np.hstack([np.ones((len(x_ND), 1)), x_ND, waves_NF])


def ks_statistics(w_NL: np.ndarray, x_ND: np.ndarray) -> np.ndarray:
    """(D, L): the largest difference of the two distribution functions, in each dimension."""
    starts = range(0, x_ND.shape[1], DIMENSIONS)
    return np.concatenate([_ks(w_NL, x_ND[:, start : start + DIMENSIONS]) for start in starts])


def _ks(w_NL: np.ndarray, x_ND: np.ndarray) -> np.ndarray:
    order_ND = np.argsort(x_ND, axis=0, kind="stable")
    sorted_ND = np.take_along_axis(x_ND, order_ND, axis=0)
    # Among equal values the functions are compared after the last one.
    ends_ND = np.ones(x_ND.shape, bool)
    ends_ND[:-1] = sorted_ND[1:] != sorted_ND[:-1]
    sum_DL = np.zeros((x_ND.shape[1], w_NL.shape[1]))
    highest_DL, lowest_DL = sum_DL.copy(), sum_DL.copy()
    # Image by image for all dimensions at once: 20 times as fast as a sum of whole columns.
    for order_D, ends_D in zip(order_ND, ends_ND, strict=True):
        sum_DL += w_NL[order_D]
        if ends_D.all():
            np.maximum(highest_DL, sum_DL, out=highest_DL)
            np.minimum(lowest_DL, sum_DL, out=lowest_DL)
        elif ends_D.any():
            highest_DL[ends_D] = np.maximum(highest_DL[ends_D], sum_DL[ends_D])
            lowest_DL[ends_D] = np.minimum(lowest_DL[ends_D], sum_DL[ends_D])
    return np.maximum(highest_DL, -lowest_DL)


def _rounded(values_L: np.ndarray) -> np.ndarray:
    """In shares of the largest, so that equal labellings, which differ in the last digit, tie."""
    return np.round(values_L / max(np.abs(values_L).max(), LEAST), 12)


def _shares_above(values_L: np.ndarray) -> np.ndarray:
    """(L,): of each labelling, the share of all that are at least as extreme, itself among them."""
    below_L = np.searchsorted(np.sort(values_L), values_L, side="left")
    return (len(values_L) - below_L) / len(values_L)


def normal_scores(x_ND: np.ndarray) -> np.ndarray:
    """Each dimension as a standard normal's quantiles of its ranks (van der Waerden 1952), equal
    values at their mean rank; one that does not vary is 0."""
    quantile = statistics.NormalDist().inv_cdf
    table_R = np.array([quantile(r / (2 * len(x_ND))) for r in range(1, 2 * len(x_ND))])
    found_ND = np.empty(x_ND.shape)
    for d, x_N in enumerate(x_ND.T):
        _, of_N, count_U = np.unique(x_N, return_inverse=True, return_counts=True)
        # Twice the mean of the ranks from 1/2 to N - 1/2.
        found_ND[:, d] = table_R[(2 * np.cumsum(count_U) - count_U - 1)[of_N]]
    return found_ND


def _scaled(x_ND: np.ndarray) -> np.ndarray:
    """Each dimension with mean 0 and variance 1; one that does not vary is 0."""
    centred_ND = x_ND - x_ND.mean(axis=0)
    deviation_D = centred_ND.std(axis=0)
    return centred_ND / np.where(deviation_D > 0, deviation_D, 1.0)


def _blocks(
    is_arrival_N: np.ndarray, arrivals_N: np.ndarray | None, reference_N: np.ndarray | None
) -> np.ndarray:
    """Return a number for each block; those of the two sides are never the same."""
    count = int(is_arrival_N.sum())
    ours = np.arange(count) if arrivals_N is None else np.unique(arrivals_N, return_inverse=True)[1]
    theirs = (
        np.arange(len(is_arrival_N) - count)
        if reference_N is None
        else np.unique(reference_N, return_inverse=True)[1]
    )
    return np.concatenate([ours, theirs + len(is_arrival_N)])
