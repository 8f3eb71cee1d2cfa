"""The training loop of one rank: steps, epochs, validation, checkpoints, early stopping.

Everything that lasts is a function of (snapshot, settings, position), so that a training that was
killed anywhere goes on from its last checkpoint as if nothing had been, with any number of ranks.
"""

from __future__ import annotations

import contextlib
import functools
import math
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from jobs.bundles.device import place
from jobs.bundles.preview import SHEET_IMAGES, sheet_of
from jobs.datasets.splits import ImageSet, KeptSplit, Split, find_splits
from jobs.errors import JobError, StorageError
from jobs.telemetry.metrics import Telemetry
from jobs.train import checkpoints
from jobs.train.checkpoints import Position, Saver, copied
from jobs.train.data.loader import Loader, Share, image_ids
from jobs.train.data.select import loader_of, part_of, validation_of
from jobs.train.hardware import Hardware, choose
from jobs.train.passes import closed_form
from jobs.train.rank import Rank
from jobs.train.task import TrainTask
from jobs.train.validation import validate
from vae_core.all_reduce import Peers
from vae_core.families.registry import family_of
from vae_core.model import to_unit_range
from vae_core.noise import StepNoise
from vae_core.objectives.objectives import Objective
from vae_core.training.augment import augment
from vae_core.training.ema import WeightAverage
from vae_core.training.step import NonFiniteLoss, Stepper, learning_rate

BEAT_STEPS = 20  # after which ranks compare notes, and an accelerator is waited for
SPLITS = ("train", "validation", "calibration")
PICTURES_S = 60.0  # between sheets for TensorBoard


class Training:
    """One rank's model, optimiser, data and position."""

    def __init__(
        self,
        order: TrainTask,
        rank: Rank,
        telemetry: Telemetry | None = None,
        after_epoch: Callable[[dict[str, Any]], None] = lambda entry: None,
    ) -> None:
        """after_epoch: hears each new entry of the history."""
        self.after_epoch = after_epoch
        self.order = order
        self.rank = rank
        self.settings = order.train_settings
        self.telemetry = telemetry or Telemetry([])
        self.hardware: Hardware = choose(self.settings)
        self.splits: dict[str, Split] = rank.agree(
            find_splits(order.shard_uris, order.image_shape) if rank.is_first else None
        )
        self.validation: Split | KeptSplit = self.splits["validation"]
        self.part = part_of(self.splits["train"], self.settings, rank)
        torch.manual_seed(self.settings.seed)  # the same first weights on every rank
        config = self.settings.model_config_of(order.image_shape)
        family = family_of(config)
        self._by_gradient = family.trained_by(config) == "gradient"
        self.model = place(family.build(config), self.hardware)
        self.objective = Objective(
            self.model,
            self.settings.objective,
            dataset_size=self.part.order.rows,
            peers=Peers(world_size=rank.world_size),
        )
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        decay, ema = self.settings.weight_decay, self.settings.ema_decay
        self.optimizer = torch.optim.AdamW(trainable, weight_decay=decay, fused=True)
        self.average = WeightAverage(self.model, ema) if ema else None
        self.stepper = self._stepper()
        self.position = Position()
        self.best: dict[str, Tensor] | None = None
        keep = self.settings.run.keep_checkpoints
        self._saver = Saver(order.checkpoints, order.attempt, keep, self._say)
        self._saved_at = self._logged_at = self._drawn_at = time.monotonic()
        self._loop_told: dict[str, float] = {}  # gradient norm, and share of time waiting for data
        self._unseen: list[tuple[int, int, Tensor]] = []  # step, images, sums on the device

    def _stepper(self) -> Stepper:
        settings = self.settings
        return Stepper(
            forward=DistributedDataParallel(
                self.objective, broadcast_buffers=False, gradient_as_bucket_view=True
            )
            if self.rank.world_size > 1
            else self.objective,
            optimizer=self.optimizer,
            world_size=self.rank.world_size,
            clip_norm=settings.clip_norm,
            micro_batches=settings.run.micro_batches,
            precision=self.hardware.precision,
        )

    def loader(self) -> Loader:
        """Chosen by its size, and said."""
        loader, description = loader_of(self.part, self.settings.run, self.hardware.device)
        self._say(f"{self.hardware}; {description}")
        self.validation = validation_of(self.splits["validation"], loader, self.settings.run)
        return loader

    def _say(self, text: str) -> None:
        if self.rank.is_first:
            self.telemetry.note(f"train {self.order.model}@{self.order.version}: {text}")

    def restore(self) -> None:
        """Goes on from the newest checkpoint, the same one on every rank."""
        folder = self.order.checkpoints
        name = self.rank.agree(checkpoints.newest(folder) if self.rank.is_first else None)
        if name is None:
            return
        checkpoint = checkpoints.load(folder, name)
        average = checkpoints.unpack(checkpoint.tensors, self.model, self.optimizer)
        if self.average is not None:
            self.average.load(average)
        self.position, self.best = checkpoint.position, checkpoint.best
        self._saver.resumed_from(checkpoint)
        self._say(f"going on from epoch {self.position.epochs + 1}, step {self.position.step}")

    @property
    def steps_wanted(self) -> int:
        """Count the steps of the whole training."""
        return self.settings.epochs * self.part.batches

    @property
    def _epochs_wanted(self) -> int:
        return self.settings.epochs if self._by_gradient else 1

    @property
    def is_done(self) -> bool:
        """Whether no step is left."""
        at, patience = self.position, self.settings.patience
        late = at.best is not None and patience and at.epochs - at.best["epoch"] >= patience
        return at.epochs >= self._epochs_wanted or bool(late)

    @property
    def used_splits(self) -> dict[str, Split]:
        """Return the splits that the training reads, by name."""
        return {name: self.splits[name] for name in SPLITS}

    @property
    def images_seen(self) -> int:
        """Count the images that all steps so far have seen."""
        return self.part.order.rows * self.position.epochs

    @property
    def published_entry(self) -> dict[str, Any]:
        """The history's entry of the epoch whose weights the model has at the end."""
        best = self.position.best
        return self.position.history[best["epoch"] - 1 if best else -1]

    def run(self) -> None:
        """All epochs that are left; the model has its best weights then."""
        if not self._by_gradient:
            if not self.is_done:
                self._solve()
        elif not self.is_done:
            loader = self.loader()
            while not self.is_done:
                self._epoch(loader)
        if self.rank.is_first:
            self._saver.finish()
        if self.best is not None:
            self.model.load_state_dict(self.best)
        if not math.isfinite(self.published_entry["validation_nats"]):
            raise JobError(
                "training stopped: no epoch has a finite validation; lower --learning-rate, or set "
                "clip_norm"
            )

    def _epoch(self, loader: Loader) -> None:
        at = self.position
        started, waited, before = time.monotonic(), loader.waited_s, at.seconds
        waiting = 0.0
        for share in loader.shares(at.epochs, at.batch):
            self._step(share)
            at.batch += 1
            at.step += 1
            at.seconds = before + time.monotonic() - started
            waiting = (loader.waited_s - waited) / max(at.seconds - before, 1e-9)
            if at.batch % BEAT_STEPS == 0:
                self._beat(waiting)
        if at.batch % BEAT_STEPS:
            self._loop_told = {"grad_norm": self._take_in(), "data_wait_share": waiting}
        self._end_epoch()

    def _end_epoch(self) -> None:
        """Validate, judge and report the epoch, and begin the next one."""
        at, entry = self.position, self._entry()
        validated = validate(self.model, self.validation, self.settings, self.rank, self.average)
        at.history.append({**entry, **validated.entry})
        at.epochs, at.batch, at.seconds, at.sums = at.epochs + 1, 0, 0.0, [0.0] * 4
        self._judge(validated.entry["validation_nats"])
        if self.rank.is_first:
            self.telemetry.epoch({**at.history[-1], **validated.latents, **self._state()})
            self._draw_if_due()
            self._save_if_due(last=self.is_done)
        if self.is_done:
            self._saver.wait()  # whoever hears of the last epoch may end this process
        self.after_epoch(at.history[-1])

    @functools.cached_property
    def _sheet_images(self) -> ImageSet:
        batches = self.validation.batches(
            self.settings.score_batch, self.rank.index, self.rank.world_size
        )
        return next(batches).rows(0, SHEET_IMAGES)

    def _draw_if_due(self) -> None:
        """Draw a sheet for TensorBoard, now and then and at the end."""
        now = time.monotonic()
        if self.telemetry.is_heard and (self.is_done or now - self._drawn_at > PICTURES_S):
            self._drawn_at = now
            images = self._sheet_images
            heading = f"{self.order.model}@{self.order.version}, epoch {self.position.epochs}"
            with self.average.in_place() if self.average else contextlib.nullcontext():
                self.telemetry.pictures(
                    "images", sheet_of(self.model, images, heading), self.position.step
                )

    def _beat(self, waiting: float) -> None:
        """Ranks add up what they did; the first one tells and saves it, when that is due."""
        self._loop_told = {"grad_norm": self._take_in(), "data_wait_share": waiting}
        if not self.rank.is_first:
            return
        now = time.monotonic()
        if now - self._logged_at >= self.settings.run.log_s:
            self._logged_at = now
            self.telemetry.step({**self._entry(), **self._state()})
        self._save_if_due()

    def _take_in(self) -> float:
        """Count the steps since the last call, over all ranks; return their mean gradient norm."""
        unseen, self._unseen = self._unseen, []
        local = torch.zeros(5, dtype=torch.float64)
        norms = []
        if unseen:
            values = torch.stack([sums for _, _, sums in unseen]).cpu().double()
            for (step, images, _), row in zip(unseen, values, strict=True):
                if not math.isfinite(row[3]):
                    self._bad_step(step, f"step {step}: gradient norm {row[3]}")
                    continue
                local += torch.cat([row[:3], torch.tensor([images, 1.0], dtype=torch.float64)])
                norms.append(float(row[3]))
        total = self.rank.sum(local)
        if total[4] != len(norms) * self.rank.world_size:
            raise JobError("training workers disagree on which steps were good; please report it")
        sums = zip(self.position.sums, total[:4].tolist(), strict=True)
        self.position.sums = [before + more for before, more in sums]
        return sum(norms) / len(norms) if norms else math.nan

    def _bad_step(self, step: int, reason: str) -> None:
        """Count and report a step that left the weights as they were; up to a bound, skip it."""
        at = self.position
        at.bad_steps += 1
        batch = step % self.part.batches
        bound = self.settings.run.max_bad_steps
        if self.rank.is_first:
            ids: list[str] = []
            with contextlib.suppress(StorageError):  # the step is reported without them then
                ids = image_ids(self.part, at.epochs, batch)
            self.telemetry.bad_step(step, reason, ids)
            self._say(
                f"{reason}; skipped ({at.bad_steps} of at most {bound}); its {len(ids)} images "
                f"begin with {', '.join(ids[:3])}"
            )
        if at.bad_steps > bound:
            raise JobError(
                f"training stopped: {reason}; {at.bad_steps} steps had no finite loss, "
                f"run.max_bad_steps is {bound}. Lower --learning-rate, or set clip_norm; the "
                f"images of those batches are in {self.order.events}"
            )

    def _entry(self) -> dict[str, Any]:
        at = self.position
        loss, recon, kl, count = at.sums
        images = max(count, 1.0)
        return {
            "epoch": at.epochs + 1,
            "step": at.step,
            "train_loss_nats": loss / images,
            "train_nats": (recon + kl) / images,
            "train_recon_nats": recon / images,
            "train_kl_nats": kl / images if self.model.has_prior else None,
            "images_per_s": count / max(at.seconds, 1e-9),
            "seconds": at.seconds,
        }

    def _state(self) -> dict[str, float]:
        """Return what telemetry tells beside the losses."""
        device = self.hardware.device
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kibibytes on Linux
        return {
            **self._loop_told,
            "progress": self.position.step / self.steps_wanted,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "memory_gib": peak / (1 << 30),
        }

    def _judge(self, validation_nats: float) -> None:
        """Keep the weights of the best epoch, of those whose losses compare."""
        at = self.position
        # An epoch in mid warm-up weighs its KL less than a later one.
        warm = at.step >= self.settings.objective.warm_from
        last = at.epochs == self._epochs_wanted and at.best is None
        better = at.best is None or validation_nats < at.best["validation_nats"]
        if last or (warm and better and math.isfinite(validation_nats)):
            at.best = {
                "epoch": at.epochs,
                "validation_nats": validation_nats,
                "weights": self._saver.best_name(at.epochs),
            }
            with self.average.in_place() if self.average else contextlib.nullcontext():
                self.best = copied(self.model.state_dict())

    def _save_if_due(self, *, last: bool = False) -> None:
        run, now = self.settings.run, time.monotonic()
        if last:
            self._saver.wait()
        elif self._saver.busy or now - self._saved_at < run.checkpoint_s:
            return
        self._saved_at = now
        average = self.average.average if self.average is not None else None
        self._saver.save(
            self.position.copy(),
            checkpoints.pack(self.model, self.optimizer, average),
            self.best,
        )

    def _solve(self) -> None:
        """One pass in the place of all epochs."""
        started = time.monotonic()
        train = self.splits["train"]
        self.position.sums = closed_form(self.model, train, self.settings, self.rank)
        self.position.seconds = time.monotonic() - started
        self._end_epoch()

    def _step(self, share: Share) -> None:
        settings, step = self.settings, self.position.step
        rate = learning_rate(
            step,
            total_steps=self.steps_wanted,
            base=settings.learning_rate,
            warmup_steps=self._warmup_steps,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        device = self.hardware.device
        noise = StepNoise(
            seed=settings.seed,
            step=step,
            batch=share.global_count,
            positions=share.positions.to(device) if share.positions is not None else None,
            device=device,
        )
        x = to_unit_range(
            share.pixels_NHWC.to(device, non_blocking=True),
            channels_last=self.hardware.channels_last,
        )
        x = augment(x, noise, flip=settings.flip, crop=settings.crop)
        if device.type == "cpu":
            self._step_seen(x, noise)
        else:
            sums = self.stepper.step_unseen(x, noise, step)
            self._unseen.append((step, len(x), sums))
        if self.average is not None:
            self.average.update(step)

    def _step_seen(self, x: Tensor, noise: StepNoise) -> None:
        try:
            found = self.stepper.step(x, noise, self.position.step)
        except NonFiniteLoss as error:
            self._bad_step(self.position.step, str(error))
            return
        values = torch.tensor([found.loss, found.recon_nll, found.kl, found.grad_norm])
        self._unseen.append((self.position.step, found.images, values))

    @property
    def _warmup_steps(self) -> int:
        given = self.settings.warmup_steps
        return given if given is not None else min(100, self.steps_wanted // 10)
