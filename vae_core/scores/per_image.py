"""Per-image scores: higher is more anomalous, raw and unclamped."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_core.bounds import bound_and_elbo
from vae_core.model import Model, to_unit_range
from vae_core.moments import LatentMoments
from vae_core.noise import ImageNoise, image_keys
from vae_core.posteriors import Posterior
from vae_core.precision import Precision
from vae_core.scores.names import DECISIVE, SCORES, patch_side

# Numbers of a likelihood's parameters, in `Scorer.bounds`: on a CPU what stays in its cache, with
# the layers before it, which is faster than what does not.
DECODED_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 25}


@dataclasses.dataclass(frozen=True)
class ScoredBatch:
    """Arrays of N rows. `scores` has every name of SCORES; None where the family has no such.

    Of images that were only encoded, neither reconstructions nor any score.
    """

    mean_ND: np.ndarray
    log_var_ND: np.ndarray | None  # None: codes without spread
    scores: dict[str, np.ndarray | None]
    reconstruction_NHWC: np.ndarray | None = None  # uint8
    max_patch_yx_N2: np.ndarray | None = None  # int32: row, column of the worst patch's first pixel

    @property
    def nats_N(self) -> np.ndarray:
        """What stands for the model's fit: neg_elbo, or recon_nll where there is no KL."""
        for name in DECISIVE:
            values = self.scores[name]
            if values is not None:
                return values
        raise AssertionError("every family has recon_nll")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """Encodes, reconstructs and scores images, a pure function of (model, image, image id).

    Batches have one fixed shape (the last is padded and the padding dropped), so that the
    numbers do not depend on how images were dealt to workers.

    samples: K posterior samples in recon_nll. precision: of the networks; likelihoods, divergences
    and sums are in float32 and above whatever it is. moments, heldout_neg_elbo: None before they
    are known; the scores that need them are then None.
    """

    model: Model
    batch_size: int
    samples: int
    seed: int
    precision: Precision = "float32"
    moments: LatentMoments | None = None
    heldout_neg_elbo: float | None = None

    def score(self, pixels_NHWC: np.ndarray, image_ids: list[str]) -> ScoredBatch:
        """pixels: uint8 (N, H, W, C), N at least 1. Raises ValueError on another image shape."""
        merged = self._batches(pixels_NHWC, image_ids, self._forward)
        means, log_vars = merged.pop("mean"), merged.pop("log_var", None)
        reconstruction, places = merged.pop("reconstruction"), merged.pop("max_patch_yx")
        merged["complexity_bits"] = complexity_bits(pixels_NHWC)
        return ScoredBatch(means, log_vars, self._all_scores(merged), reconstruction, places)

    def encode(self, pixels_NHWC: np.ndarray, image_ids: list[str]) -> ScoredBatch:
        """Return the same codes as `score` gives, bit for bit, and nothing else."""
        merged = self._batches(pixels_NHWC, image_ids, self._codes)
        return ScoredBatch(merged["mean"], merged.get("log_var"), dict.fromkeys(SCORES))

    def bounds(
        self, pixels_NHWC: np.ndarray, image_ids: list[str], *, samples: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the importance-weighted bound of log p(x), and the inference gap, (N,) in nats
        each.

        samples: K, by noise of this seed. The gap is the bound less the ELBO of the same samples:
        Cremer et al. 2018, eq. 6. Raises ValueError of a deterministic posterior.
        """
        images, chunk = self._decoded_at_once()

        def forward(x_NCHW: Tensor, keys_N2: Tensor) -> dict[str, Tensor]:
            target = self.model.observe(x_NCHW, ImageNoise(seed=self.seed, keys_N2=keys_N2))
            noise = ImageNoise(seed=seed, keys_N2=keys_N2)
            dim = self.model.config.latent_dim
            bound_N, elbo_N = bound_and_elbo(
                self.model, target, lambda k: noise.sample(k, dim), samples=samples, chunk=chunk
            )
            return {"bound": bound_N, "gap": bound_N - elbo_N}

        found = dataclasses.replace(self, batch_size=images)._batches(
            pixels_NHWC, image_ids, forward
        )
        return found["bound"], found["gap"]

    def _decoded_at_once(self) -> tuple[int, int]:
        """Images a batch, and samples of each; of model and device, so that they never change."""
        height, width, channels = self.model.config.image_shape
        outputs = self.model.likelihood.outputs(channels) * height * width
        at_once = DECODED_AT_ONCE[next(self.model.parameters()).device.type]
        decodings = max(8, min(1024, at_once // outputs))
        images = min(32, decodings)  # the last batch is filled up
        return images, decodings // images

    def _batches(
        self,
        pixels_NHWC: np.ndarray,
        image_ids: list[str],
        forward: Callable[[Tensor, Tensor], dict[str, Tensor]],
    ) -> dict[str, np.ndarray]:
        if pixels_NHWC.shape[1:] != self.model.config.image_shape:
            raise ValueError(
                f"images of shape {pixels_NHWC.shape[1:]}, the model was trained on "
                f"{self.model.config.image_shape} (H, W, C)"
            )
        keys_N2 = image_keys(image_ids)
        parts = []
        for start in range(0, len(pixels_NHWC), self.batch_size):
            rows = slice(start, start + self.batch_size)
            parts.append(self._one_batch(pixels_NHWC[rows], keys_N2[rows], forward))
        # Every part holds the same names.
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _all_scores(self, known: dict[str, np.ndarray]) -> dict[str, np.ndarray | None]:
        if self.model.likelihood.discrete and "neg_elbo" in known:
            pixels = self.model.config.pixels
            bits = known["neg_elbo"] / math.log(2.0)
            known["bits_per_dim"] = bits / pixels
            known["complexity_corrected"] = bits - known["complexity_bits"]
        if self.heldout_neg_elbo is not None and "neg_elbo" in known:
            known["typicality"] = np.abs(known["neg_elbo"] - self.heldout_neg_elbo)
        return {name: known.get(name) for name in SCORES}

    @torch.inference_mode()
    def _one_batch(
        self,
        pixels: np.ndarray,
        keys_N2: np.ndarray,
        forward: Callable[[Tensor, Tensor], dict[str, Tensor]],
    ) -> dict[str, np.ndarray]:
        count, pad = len(pixels), self.batch_size - len(pixels)
        x = torch.from_numpy(np.concatenate([pixels, pixels[:1].repeat(pad, axis=0)]))
        keys = torch.from_numpy(np.concatenate([keys_N2, keys_N2[:1].repeat(pad, axis=0)]))
        device = next(self.model.parameters()).device
        values = forward(to_unit_range(x.to(device)), keys.to(device))
        return {name: value[:count].cpu().numpy() for name, value in values.items()}

    def _codes(self, x_NCHW: Tensor, keys_N2: Tensor) -> dict[str, Tensor]:
        noise = ImageNoise(seed=self.seed, keys_N2=keys_N2)
        return _coded(self._encode(self.model.observe(x_NCHW, noise)))

    def _encode(self, target_NCHW: Tensor) -> Posterior:
        return self.model.posterior.read(self._network(self.model.encoder, target_NCHW))

    def _decode(self, z_ND: Tensor) -> Tensor:
        # Means are a view of the encoder's output: another layout would be compiled by itself.
        return self._network(self.model.decoder, z_ND.contiguous())

    def _network(self, module: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, self.precision == "bfloat16"):
            found = module(x)
        return found.float() if self.precision == "bfloat16" else found

    def _forward(self, x_NCHW: Tensor, keys_N2: Tensor) -> dict[str, Tensor]:
        model, noise = self.model, ImageNoise(seed=self.seed, keys_N2=keys_N2)
        target = model.observe(x_NCHW, noise)
        posterior = self._encode(target)
        mean = posterior.mean_ND
        recon = model.likelihood.mean(self._decode(mean))
        error = (recon - target).square().mean(1, keepdim=True)
        patches = patch_errors(error)
        wide = patches.shape[3]
        worst_N, place_N = patches.flatten(1).max(1)
        shown = recon.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
        values = _coded(posterior) | {
            "reconstruction": shown.permute(0, 2, 3, 1).contiguous(),
            "recon_nll": self._recon_nll(target, posterior, noise),
            "recon_mse": error.flatten(1).double().mean(1),
            "max_patch_error": worst_N.double(),
            "max_patch_yx": torch.stack([place_N // wide, place_N % wide], dim=1).int(),
        }
        kl_ND = model.kl(posterior)
        if kl_ND is not None:
            values["kl"] = kl_ND.double().sum(1)
            values["neg_elbo"] = values["recon_nll"] + values["kl"]
        if self.moments is not None:
            values["latent_mahalanobis"] = self.moments.mahalanobis(mean)
        return values

    def _recon_nll(self, target: Tensor, posterior: Posterior, noise: ImageNoise) -> Tensor:
        model, log_sigma = self.model, self.model.likelihood.scale()
        # A code is the same in every sample.
        samples = self.samples if posterior.log_var_ND is not None else 1
        nll = torch.zeros(len(target), dtype=torch.float64, device=target.device)
        for k in range(samples):
            eps = noise.sample(k, posterior.mean_ND.shape[1])
            params = self._decode(model.draw(posterior, eps))
            nll -= model.likelihood.log_prob(params, log_sigma, target).double()
        return nll / samples


def _coded(posterior: Posterior) -> dict[str, Tensor]:
    codes = {"mean": posterior.mean_ND}
    if posterior.log_var_ND is not None:
        codes["log_var"] = posterior.log_var_ND
    return codes


def patch_errors(error_N1HW: Tensor) -> Tensor:
    """Mean error of every square patch of `patch_side`."""
    return F.avg_pool2d(error_N1HW, patch_side(*error_N1HW.shape[2:]), stride=1)


def complexity_bits(pixels_NHWC: np.ndarray) -> np.ndarray:
    """Lossless (DEFLATE) size of each image's uint8 pixels in bits, (N,) float64.

    The covariate of Serrà et al. 2020, "Input complexity and out-of-distribution detection".
    """
    sizes = [len(zlib.compress(image.tobytes(), 6)) for image in pixels_NHWC]
    return 8.0 * np.array(sizes, dtype=np.float64)
