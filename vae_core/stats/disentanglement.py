"""Disentanglement scores on data whose factors are known. All in [0, 1], higher is better.

Fewer than two code dimensions or factors, or a factor that never changes, are a ValueError.

codes (N, D): posterior means. factors (N, F): integers from 0. Numpy, in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

BINS = 20


def discretise(codes_ND: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Each dimension into bins of equal width between its least and largest value, (N, D)."""
    low, high = codes_ND.min(0), codes_ND.max(0)
    width = np.where(high > low, high - low, 1.0)
    return np.minimum((codes_ND - low) / width * bins, bins - 1).astype(np.int64)


def mutual_information(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Of two discrete variables, in nats, from their joint counts."""
    joint = np.zeros((a_N.max() + 1, b_N.max() + 1))
    np.add.at(joint, (a_N, b_N), 1.0)
    joint /= joint.sum()
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    nonzero = joint > 0
    return float((joint[nonzero] * np.log(joint[nonzero] / outer[nonzero])).sum())


def entropy(a_N: np.ndarray) -> float:
    """Of a discrete variable, in nats."""
    share = np.bincount(a_N) / len(a_N)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def _check(codes_ND: np.ndarray, factors_NF: np.ndarray) -> None:
    if codes_ND.shape[1] < 2 or factors_NF.shape[1] < 2:
        raise ValueError(
            f"{codes_ND.shape[1]} code dimensions and {factors_NF.shape[1]} factors; "
            "disentanglement takes two of each at least"
        )
    constant = np.flatnonzero(factors_NF.min(0) == factors_NF.max(0))
    if len(constant):
        raise ValueError(f"factor {constant[0]} is the same in all images; leave it out")


def _gap(scores_DF: np.ndarray) -> np.ndarray:
    """Largest less second largest over D, (F,)."""
    ordered = np.sort(scores_DF, axis=0)
    return ordered[-1] - ordered[-2]


def mig(codes_ND: np.ndarray, factors_NF: np.ndarray) -> float:
    """Mutual information gap: Chen et al. 2018, eq. 6; codes in 20 bins, as in Locatello 2019."""
    _check(codes_ND, factors_NF)
    binned = discretise(codes_ND)
    information = np.array(
        [
            [mutual_information(binned[:, d], factors_NF[:, f]) for f in _columns(factors_NF)]
            for d in _columns(binned)
        ]
    )
    entropies = np.array([entropy(factors_NF[:, f]) for f in _columns(factors_NF)])
    return float((_gap(information) / entropies).mean())


def _columns(a: np.ndarray) -> range:
    return range(a.shape[1])


def sap(codes_ND: np.ndarray, factors_NF: np.ndarray) -> float:
    """Separated attribute predictability: Kumar et al. 2018, section 3, for ordered factors: the
    score of a code dimension for a factor is the R² of its linear regression."""
    _check(codes_ND, factors_NF)
    codes = codes_ND - codes_ND.mean(0)
    factors = factors_NF - factors_NF.mean(0)
    covariance = codes.T @ factors / len(codes)
    variance = np.outer(codes.var(0), factors.var(0))
    squared = np.where(variance > 1e-12, covariance**2 / np.maximum(variance, 1e-12), 0.0)
    return float(_gap(squared).mean())


@dataclasses.dataclass(frozen=True)
class DCI:
    """Eastwood & Williams 2018, "A framework for the quantitative evaluation of disentangled
    representations", section 2: disentanglement, completeness, and R² of the held-out half."""

    disentanglement: float
    completeness: float
    informativeness: float


def dci(codes_ND: np.ndarray, factors_NF: np.ndarray, *, l1: float = 0.01) -> DCI:
    """With lasso regressors on standardised codes; importance is the size of a coefficient."""
    _check(codes_ND, factors_NF)
    half = len(codes_ND) // 2
    codes, factors = _standardised(codes_ND), _standardised(factors_NF)
    weights = np.stack(
        [lasso(codes[:half], factors[:half, f], l1) for f in _columns(factors)], axis=1
    )
    importance = np.abs(weights)
    error = factors[half:] - codes[half:] @ weights
    r2 = 1.0 - error.var(0) / np.maximum(factors[half:].var(0), 1e-12)
    by_code = 1.0 - _normalised_entropy(importance.T)
    weight = importance.sum(1) / max(importance.sum(), 1e-12)
    by_factor = 1.0 - _normalised_entropy(importance)
    return DCI(
        float((by_code * weight).sum()), float(by_factor.mean()), float(r2.clip(0.0, 1.0).mean())
    )


def _standardised(a: np.ndarray) -> np.ndarray:
    return (a - a.mean(0)) / np.maximum(a.std(0), 1e-8)


def _normalised_entropy(importance: np.ndarray) -> np.ndarray:
    """Entropy of each column's shares, over that of equal shares; 1 for a column of zeros."""
    total = importance.sum(0)
    share = importance / np.maximum(total, 1e-12)
    logs = np.log(np.where(share > 0, share, 1.0))
    found = -(share * logs).sum(0) / np.log(len(importance))
    return np.where(total > 0, found, 1.0)


def lasso(x_ND: np.ndarray, y_N: np.ndarray, l1: float, sweeps: int = 500) -> np.ndarray:
    """argmin ‖y − x w‖² / 2N + l1·‖w‖₁ by coordinate descent (Friedman et al. 2010, eq. 5)."""
    count = len(x_ND)
    gram, target = x_ND.T @ x_ND / count, x_ND.T @ y_N / count
    weight = np.zeros(x_ND.shape[1])
    for _ in range(sweeps):
        before = weight.copy()
        for d in range(len(weight)):
            if gram[d, d] <= 0:
                continue
            pull = target[d] - gram[d] @ weight + gram[d, d] * weight[d]
            weight[d] = np.sign(pull) * max(abs(pull) - l1, 0.0) / gram[d, d]
        if np.abs(weight - before).max() < 1e-10:
            break
    return weight


def factor_vae(
    encode: Callable[[int, np.random.Generator], tuple[np.ndarray, int]],
    codes_ND: np.ndarray,
    *,
    votes: int = 800,
    seed: int = 0,
) -> float:
    """Accuracy of the majority vote: Kim & Mnih 2018, "Disentangling by factorising", section 4.

    encode(L, generator): the codes (L, D) of a batch in which one factor is fixed, all others
    drawn anew, and which factor that was. The code dimension that varies least, relative to its
    spread over codes_ND, votes for the factor. Dimensions that never vary have no vote. Half of
    the votes make the classifier, half judge it.
    """
    generator = np.random.default_rng(seed)
    spread = codes_ND.var(0)
    active = spread > 1e-8 * spread.max()
    ballots = []
    for _ in range(votes):
        codes, factor = encode(64, generator)
        relative = np.where(active, codes.var(0) / np.maximum(spread, 1e-12), np.inf)
        ballots.append((int(relative.argmin()), factor))
    half, factors = votes // 2, max(f for _, f in ballots) + 1
    table = np.zeros((codes_ND.shape[1], factors))
    for d, factor in ballots[:half]:
        table[d, factor] += 1
    verdict = table.argmax(1)
    return float(np.mean([verdict[d] == factor for d, factor in ballots[half:]]))
