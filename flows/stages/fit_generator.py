"""Fit a generator on a data set and keep it as a diffusers folder; an interrupted fit goes on from its checkpoint."""

import contextlib
import time
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from latebloom.data.images import LabeledImages
from latebloom.data.store import atomic_folder, digest_json, list_folder, local_file, write_bytes
from latebloom.flows.config.tools import FitGeneratorConfig
from latebloom.flows.run.progress import Meter, meter, say
from latebloom.flows.stages.fitted import images_to_fit, is_fitted
from latebloom.flows.stages.loaders import device_of
from latebloom.synth.fit import FitMoment, draw_samples, fit_generator, save_generator

__all__ = ["FitGeneratorConfig", "check_fit", "fit_and_save"]

# Between two checkpoints: so many seconds, and so many times what writing one takes.
CHECKPOINT_SECONDS, CHECKPOINT_TIMES = 15.0, 20
SAMPLE_SECONDS = 120.0


def check_fit(config: FitGeneratorConfig, out: Path) -> tuple[LabeledImages, bool]:
    """The images to train on, and whether `out` holds this generator already.

    Raises:
        ValueError: `out` or the folder of an unfinished fit beside it holds something else, the split does not exist,
            or there is no GPU where one is asked for.
    """
    data = images_to_fit(config)
    if is_fitted(config, out, data):
        return data, True
    device_of(config.device)
    _Unfinished(out, config, data).check()
    return data, False


def fit_and_save(config: FitGeneratorConfig, out: Path) -> str:
    """Train a pixel generator and write it to `out`; skip where the same one is there already.

    Meanwhile its checkpoint and samples are in a folder beside it, `out` with .partial at the end.

    Raises:
        ValueError: as `check_fit`, or images that a UNet of these levels cannot take.
    """
    data, there = check_fit(config, out)
    if there:
        say(f"{out} holds this generator already")
        return str(out)
    device = device_of(config.device)
    unfinished = _Unfinished(out, config, data)
    start = unfinished.read()
    done = int(start["step"]) if start else 0
    if start:
        say(f"fit generator: goes on at step {done:,} of {config.generator.steps:,} ({unfinished.folder})")
    begin = time.perf_counter()
    try:
        with meter("fit generator", config.generator.steps, "steps", done) as bar:  # closed before its end is said
            keeper = _Keeper(unfinished, bar, config, data)
            fit = fit_generator(data, config.generator, config.seed, device, on_moment=keeper, start=start)
    except KeyboardInterrupt:
        on = f"goes on from step {keeper.saved:,} ({unfinished.folder})" if keeper.saved else "begins anew"
        say(f"fit generator: stopped after step {bar.done:,}; the same command {on}")
        raise
    with atomic_folder(out, "model_index.json") as temporary:
        save_generator(temporary, fit, data, config.generator, config.seed)
        (temporary / "samples.png").write_bytes(draw_samples(fit.unet, data, config.seed))
    unfinished.remove()
    loss = float(fit.losses[-100:].mean())
    say(
        f"{out}: trained on {len(data):,} images in {time.perf_counter() - begin:.0f} s, mean loss {loss:.4f}; "
        "samples.png shows what it makes"
    )
    return str(out)


class _Unfinished:
    """The folder of an unfinished fit: its checkpoint, and samples by step."""

    def __init__(self, out: Path, config: FitGeneratorConfig, data: LabeledImages) -> None:
        whole = out.absolute() if isinstance(out, Path) else out
        self.folder = whole.parent / f"{whole.name}.partial"
        self.checkpoint = self.folder / "checkpoint.safetensors"
        asked = {"config": config.generator.model_dump(mode="json"), "seed": config.seed}
        self.key = digest_json({**asked, "images": data.digest, "version": 1})

    def check(self) -> None:
        """Refuse a checkpoint of another fit.

        Raises:
            ValueError: it has other settings, other images or another seed, or is damaged.
        """
        if not self.checkpoint.exists():
            return
        with local_file(self.checkpoint) as local, self._readable(), safetensors.safe_open(local, "pt") as file:
            key = (file.metadata() or {}).get("key")
        if key != self.key:
            raise ValueError(
                f"{self.folder} holds an unfinished fit with other settings, images or seed; finish it with those, "
                "delete that folder, or give another folder for this generator"
            )

    def read(self) -> dict[str, Tensor] | None:
        """The tensors of the checkpoint; None where there is none."""
        if not self.checkpoint.exists():
            return None
        with local_file(self.checkpoint) as local, self._readable():
            return safetensors.torch.load_file(local)

    def write(self, moment: FitMoment) -> None:
        write_bytes(self.checkpoint, safetensors.torch.save(moment.tensors(), {"key": self.key}))

    def write_samples(self, step: int, png: bytes) -> None:
        write_bytes(self.folder / "samples" / f"step-{step:06}.png", png)

    def remove(self) -> None:
        """Remove what is ours; the folder goes where nothing else lies in it."""
        self.checkpoint.unlink(missing_ok=True)
        samples = self.folder / "samples"
        for file, _ in list_folder(samples) if samples.is_dir() else []:
            if file.name.startswith("step-"):
                file.unlink(missing_ok=True)
        if isinstance(self.folder, Path):  # storage has no empty folders
            for folder in (samples, self.folder):
                with contextlib.suppress(OSError):  # a person's file is in it, or it was never made
                    folder.rmdir()

    @contextlib.contextmanager
    def _readable(self) -> Any:
        try:
            yield
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{self.checkpoint} is a damaged checkpoint ({error}); delete it to fit from the start"
            ) from error


class _Keeper:
    """Moves the bar every ten steps; now and then writes a checkpoint, and at most every two minutes samples."""

    def __init__(self, unfinished: _Unfinished, bar: Meter, config: FitGeneratorConfig, data: LabeledImages) -> None:
        self.unfinished, self.bar, self.config, self.data = unfinished, bar, config, data
        self.saved, self.interval = bar.done, CHECKPOINT_SECONDS
        self.begin = self.last = time.monotonic()
        self.first = bar.done
        self.sampled = -SAMPLE_SECONDS  # with the first checkpoint

    def __call__(self, moment: FitMoment) -> None:
        now = time.monotonic()
        batch = self.config.generator.batch_size
        rate = batch * (moment.step - self.first) / max(now - self.begin, 1e-9)
        self.bar.title = f"fit generator  loss {moment.loss():.4f}  {rate:,.0f} images/s"
        self.bar.add(moment.step - self.bar.done)
        if now - self.last < self.interval:
            return
        self.unfinished.write(moment)
        if self.saved == self.first:
            say(f"fit generator: its checkpoint and samples are in {self.unfinished.folder} until it is done")
        self.saved = moment.step
        if now - self.sampled >= SAMPLE_SECONDS:
            with moment.averaged() as unet:
                self.unfinished.write_samples(moment.step, draw_samples(unet, self.data, self.config.seed))
            self.sampled = now
        self.last = time.monotonic()
        self.interval = max(CHECKPOINT_SECONDS, CHECKPOINT_TIMES * (self.last - now))
