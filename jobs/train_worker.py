"""What one rank of a training does. Ray Train calls `train_loop` on every worker."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from jobs import bundle as bundles
from jobs import checkpoints
from jobs.bundle import Bundle, make_scorer
from jobs.bundle_about import compute_fingerprint
from jobs.checkpoints import Checkpoint
from jobs.config import TrainSettings
from jobs.errors import JobError
from jobs.loader import ImageSet, Share, batches, epoch_shares, load_split, rank_share
from jobs.records import save_completion
from jobs.schema import PREPROCESSING
from jobs.train import TrainOrder
from jobs.units import Completion
from vae_core.autoencoder import Autoencoder, to_unit_range
from vae_core.finish import FinalSums
from vae_core.linear import solve, sums_for
from vae_core.moments import LatentMoments
from vae_core.noise import ImageNoise, StepNoise, image_keys
from vae_core.objectives import Objective
from vae_core.peers import Peers
from vae_core.scores import Scorer
from vae_core.size import forward_flops, parameter_count
from vae_core.training import NonFiniteLoss, StepSums, learning_rate, train_step


def train_loop(config: dict[str, Any]) -> None:
    """Entry point of a Ray Train worker."""
    order: TrainOrder = config["order"]
    torch.set_num_threads(1)
    rank = Rank(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Rank(0, 1)
    training = Training(order, rank)
    training.restore()
    training.run()
    training.publish(started=config["started"])


@dataclasses.dataclass(frozen=True)
class Rank:
    """This worker's place among all of them."""

    index: int
    world_size: int

    def sum(self, values: Tensor) -> Tensor:
        """The element-wise sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: np.ndarray) -> np.ndarray:
        """All ranks' arrays, one after the other in rank order."""
        if self.world_size == 1:
            return value
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, value)
        return np.concatenate(parts)

    def agree(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def share_of(self, images: ImageSet) -> ImageSet:
        rows = rank_share(len(images), self.index, self.world_size)
        return ImageSet(images.pixels_NHWC[rows], images.image_ids[rows])


class Training:
    """One rank's model, optimiser, data and position."""

    def __init__(self, order: TrainOrder, rank: Rank) -> None:
        self.order = order
        self.rank = rank
        self.settings = TrainSettings.model_validate(order.settings)
        self.train = load_split(order.shard_uris, "train", order.image_shape)
        self.validation = load_split(order.shard_uris, "validation", order.image_shape)
        torch.manual_seed(self.settings.seed)  # the same first weights on every rank
        self.model = Autoencoder(self.settings.model_config_of(order.image_shape))
        self.objective = Objective(
            self.model,
            self.settings.objective,
            dataset_size=len(self.train),
            peers=Peers(world_size=rank.world_size),
        )
        self.forward = (
            DistributedDataParallel(self.objective, broadcast_buffers=False)
            if rank.world_size > 1
            else self.objective
        )
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, weight_decay=0.0, fused=True)
        self.epochs = 0
        self.step = 0
        self.history: list[dict[str, Any]] = []

    def restore(self) -> None:
        """Goes on from the newest checkpoint, the same one on every rank."""
        folder = self.order.checkpoints
        name = self.rank.agree(checkpoints.newest(folder))
        if name is not None:
            held = checkpoints.load(folder, name)
            checkpoints.unpack(held.tensors, self.model, self.optimizer)
            self.epochs, self.step, self.history = held.epochs, held.step, held.history

    @property
    def epochs_wanted(self) -> int:
        return self.settings.epochs if self.settings.fit == "gradient" else 1

    def run(self) -> None:
        while self.epochs < self.epochs_wanted:
            started = time.monotonic()
            sums = self._epoch() if self.settings.fit == "gradient" else self._solve()
            seconds = time.monotonic() - started
            self.epochs += 1
            self.history.append(self._entry(sums, seconds))
            if self.rank.index == 0:
                state = checkpoints.pack(self.model, self.optimizer)
                held = Checkpoint(self.epochs, self.step, self.history, state)
                checkpoints.save(self.order.checkpoints, self.order.attempt, held)

    def _epoch(self) -> Tensor:
        """Global sums (loss, recon_nll, kl, images) of one pass over the train split."""
        settings = self.settings
        total_steps = settings.epochs * batches(len(self.train), settings.batch_size)
        sums = torch.zeros(4, dtype=torch.float64)
        for share in epoch_shares(
            self.train,
            batch_size=settings.batch_size,
            seed=settings.seed,
            epoch=self.epochs,
            rank=self.rank.index,
            world_size=self.rank.world_size,
        ):
            rate = learning_rate(
                self.step,
                total_steps=total_steps,
                base=settings.learning_rate,
                warmup_steps=min(100, total_steps // 10),
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            sums += torch.tensor(self._step(share), dtype=torch.float64)
            self.step += 1
        return self.rank.sum(sums)

    def _step(self, share: Share) -> StepSums:
        noise = StepNoise(
            seed=self.settings.seed,
            step=self.step,
            batch=share.global_count,
            positions=share.positions,
        )
        try:
            return train_step(
                self.forward,
                self.optimizer,
                to_unit_range(torch.from_numpy(share.pixels_NHWC)),
                noise,
                step=self.step,
                world_size=self.rank.world_size,
                clip_norm=self.settings.clip_norm,
            )
        except NonFiniteLoss as error:
            raise JobError(f"training stopped: {error}; lower --learning-rate") from error

    @torch.no_grad()
    def _solve(self) -> Tensor:
        """The closed form from one pass; global sums as of an epoch, with its loss at the end."""
        try:
            sums = sums_for(self.model)
            for target, _ in self._train_targets():
                sums.add(target.flatten(1))
            for tensor in sums.tensors():
                self.rank.sum(tensor)
            solve(self.model, sums)
        except ValueError as error:
            raise JobError(f"training stopped: {error}") from error
        found = torch.zeros(4, dtype=torch.float64)
        share = self.rank.share_of(self.train)
        if len(share):
            scored = self._scorer(len(share)).score(share.pixels_NHWC, share.image_ids)
            nats, recon = scored.nats_N.sum(), scored.scores["recon_nll"]
            assert recon is not None
            found += torch.tensor([nats, recon.sum(), nats - recon.sum(), len(share)])
        return self.rank.sum(found)

    def _train_targets(self) -> Iterator[tuple[Tensor, ImageNoise]]:
        """This rank's train images as the likelihood sees them, with their noise, in batches."""
        share, size = self.rank.share_of(self.train), self.settings.score_batch
        for start in range(0, len(share), size):
            keys = torch.from_numpy(image_keys(share.image_ids[start : start + size]))
            noise = ImageNoise(seed=self.settings.seed, keys_N2=keys)
            x = to_unit_range(torch.from_numpy(share.pixels_NHWC[start : start + size]))
            yield self.model.observe(x, noise), noise

    def _entry(self, sums: Tensor, seconds: float) -> dict[str, Any]:
        loss, recon, kl, count = (float(value) for value in sums)
        return {
            "epoch": self.epochs,
            "step": self.step,
            "train_loss_nats": loss / count,
            "train_nats": (recon + kl) / count,
            "train_recon_nats": recon / count,
            "train_kl_nats": kl / count if self.model.posterior.has_prior else None,
            **self._validation(),
            "images_per_s": count / seconds,
            "seconds": seconds,
        }

    def _validation(self) -> dict[str, Any]:
        """Means over the whole split, in nats; the KL's is null where a family has none."""
        share = self.rank.share_of(self.validation)
        sums = torch.tensor(_score_sums(self._scorer(len(share)), share), dtype=torch.float64)
        nats, kl = (float(value) / len(self.validation) for value in self.rank.sum(sums))
        has_kl = self.model.posterior.has_prior
        return {"validation_nats": nats, "validation_kl_nats": kl if has_kl else None}

    def _scorer(self, images: int) -> Scorer:
        # A mean over a split is no score that is compared to the last bit: no padding is needed.
        return Scorer(
            model=self.model,
            batch_size=max(1, min(images, self.settings.score_batch)),
            samples=self.settings.score_samples,
            seed=self.settings.seed,
        )

    def _finish(self) -> LatentMoments:
        sums = FinalSums.zeros(self.settings.latent_dim)
        for target, noise in self._train_targets():
            sums.add(self.model, target, noise)
        for tensor in sums.tensors():
            self.rank.sum(tensor)
        moments = sums.finish(self.model)
        if self.model.likelihood.needs_final_error:
            self.history[-1] |= self._validation()
        return moments

    def publish(self, started: float) -> None:
        """Calibrates, writes the bundle and the unit's completion; rank 0 writes."""
        moments = self._finish()
        about = self._about()
        calibration = load_split(self.order.shard_uris, "calibration", self.order.image_shape)
        share = self.rank.share_of(calibration)
        name = about["decision_score"]
        scores = np.zeros(0)
        if len(share):
            found = make_scorer(self.model, about, moments).score(
                share.pixels_NHWC, share.image_ids
            )
            scores = found.scores[name]
        calibrated = np.sort(self.rank.gather(np.asarray(scores)))
        if self.rank.index == 0:
            self._write(moments, calibrated, about, started)
        if self.rank.world_size > 1:
            dist.barrier()

    def _about(self) -> dict[str, Any]:
        settings, last = self.settings, self.history[-1]
        return {
            "objective": settings.objective.to_dict(),
            "scoring": {
                "batch_size": settings.score_batch,
                "samples": settings.score_samples,
                "seed": settings.seed,
                "compute_fingerprint": compute_fingerprint(settings.score_batch),
            },
            "decision_score": settings.judge,
            "data": {
                "dataset": self.order.dataset,
                "images_version": self.order.images_version,
                "preprocessing": PREPROCESSING,
                "train_images": len(self.train),
                "validation_images": len(self.validation),
            },
            "metrics": {
                **last,
                "parameters": parameter_count(self.model),
                "forward_flops": forward_flops(self.model),
            },
            "history": self.history,
            "settings": self.order.settings,
            "job_id": self.order.job_id,
            "workers": self.rank.world_size,
            "code": version("latentlake"),
            "libraries": {name: version(name) for name in ("torch", "numpy", "ray", "pyarrow")},
        }

    def _write(
        self, moments: LatentMoments, scores: np.ndarray, about: dict[str, Any], started: float
    ) -> None:
        order, last = self.order, self.history[-1]
        about["data"]["calibration_images"] = len(scores)
        bundle = Bundle(
            model=order.model,
            version=order.version,
            config=self.model.config,
            weights=self.model.state_dict(),
            moments=moments,
            calibration_scores=scores,
            about=about,
        )
        bundles.save(order.lake, bundle)
        completion = Completion(
            unit_id=order.unit_id,
            attempt=order.attempt,
            outputs=[],
            counts={"images_seen": len(self.train) * self.epochs_wanted, "steps": self.step},
            seconds=time.time() - started,
            details={
                key: last[key]
                for key in ("train_nats", "validation_nats", "validation_kl_nats", "images_per_s")
            },
        )
        save_completion(order.lake, order.job_id, completion)
        checkpoints.clear(order.checkpoints)


def _score_sums(scorer: Scorer, images: ImageSet) -> tuple[float, float]:
    """Sums over a rank's images, in nats: of neg_elbo (or what stands for it), and of kl."""
    if not len(images):
        return 0.0, 0.0
    scored = scorer.score(images.pixels_NHWC, images.image_ids)
    kl = scored.scores["kl"]
    return float(scored.nats_N.sum()), 0.0 if kl is None else float(kl.sum())
