"""Running a model for ``generate``: its name, prompts and options enter, what it wrote and how it was shown leave."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from moetool.checkpoint.locate import KINDS
from moetool.commands.generate_usage import Usage, weigh
from moetool.commands.routing import locate_to_run
from moetool.errors import MoetoolError
from moetool.progress import Progress
from moetool.report.page import Weights

if TYPE_CHECKING:
    from moetool.capture.generation import Generation
    from moetool.capture.routers import MoELayer
    from moetool.checkpoint.types import Checkpoint
    from moetool.commands.generate_cli import LoadingOptions, WatchingOptions, WritingOptions

_CACHED_PART = 4
"""By default a cache holds one of so many experts of a layer."""
_RUNNABLE = "MODEL is demo, a folder with config.json and safetensors files, or a hub id such as org/name"


@dataclass(frozen=True, slots=True)
class Written:
    """One or two texts, and what they are looked at with."""

    generations: Sequence[Generation]
    weights: Weights
    layer: int
    """Number of the layer whose experts colour the text."""
    cache: int
    """Experts of each layer that a cache holds."""
    left_out: int = 0
    """Prompts that were not begun, after an interrupt."""


def write_texts(
    model: str,
    revision: str | None,
    prompts: Sequence[str],
    writing: WritingOptions,
    watching: WatchingOptions,
    loading: LoadingOptions,
    quiet: bool,
    progress: Progress,
) -> Written:
    """Load a model and continue every prompt, in a live view where standard error is a terminal and not ``quiet``.

    KeyboardInterrupt ends the text that is being written, and leaves out the prompts after it. Raises MoetoolError for
    a layer without experts, a cache that is too small and whatever loading and writing raise.
    """
    checkpoint = _locate(model, revision, progress)
    with progress.step("starting torch and transformers"):
        from moetool.capture.generation import Generator, Sampling
        from moetool.capture.job import CaptureOptions
    sampling = Sampling(writing.max_new_tokens, writing.temperature, writing.top_p, writing.top_k, writing.seed)
    generator = Generator(checkpoint, prompts, writing.chat, CaptureOptions(**asdict(loading)), progress)
    layer = _pick_layer(watching.layer, generator.layers)
    routers = generator.job.stack.moe_layers
    cache = _pick_cache(watching.cache, routers, progress)
    generator.check_length(sampling.max_new_tokens)
    generator.load(progress)
    weights = weigh(checkpoint, generator.layers, generator.loaded_bytes)
    hidden = quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb"

    def show(number: int) -> Generation:
        if hidden:
            return generator.write(number, sampling, lambda step: None)
        from moetool.commands.generate_live import LiveView

        title = f"moetool generate: {checkpoint.name}" + f", text {number + 1} of {len(prompts)}" * (len(prompts) > 1)
        usage, place = Usage(routers, cache), generator.layers.index(layer)
        view = LiveView(title, weights, usage, place, sampling.max_new_tokens, watching.delay)
        with view.opened():
            return generator.write(number, sampling, view.watch)

    generations = _until_interrupted(len(prompts), show)
    return Written(generations, weights, layer, cache, len(prompts) - len(generations))


def _locate(model: str, revision: str | None, progress: Progress) -> Checkpoint:
    try:
        return locate_to_run(model, revision, progress)
    except MoetoolError as error:
        if error.hint != KINDS:
            raise
        raise MoetoolError(error.message, _RUNNABLE) from None


def _until_interrupted(count: int, write: Callable[[int], Generation]) -> list[Generation]:
    """What was written until Ctrl-C, which raises only where there is nothing yet."""
    generations: list[Generation] = []
    for number in range(count):
        try:
            generations.append(write(number))
        except KeyboardInterrupt:
            if not generations:
                raise
            break
        if generations[-1].stopped == "interrupted":
            break
    return generations


def _pick_layer(wanted: int | None, layers: Sequence[int]) -> int:
    """The layer of ``--layer``; without one, that in the middle."""
    if wanted is None:
        return layers[len(layers) // 2]
    if wanted not in layers:
        raise MoetoolError(f"--layer {wanted}: the layer has no router", f"MoE layers: {', '.join(map(str, layers))}")
    return wanted


def _pick_cache(wanted: int | None, layers: Sequence[MoELayer], progress: Progress) -> int:
    """Experts per layer that the cache holds: those of a token at least, and no more than there are."""
    least = max(layer.experts_per_token for layer in layers)
    most = max(layer.experts - layer.zero_experts for layer in layers)
    usual = max(least, max(layer.experts for layer in layers) // _CACHED_PART)
    if wanted is None:
        return usual
    if wanted < least:
        raise MoetoolError(f"--cache {wanted}: a token needs its {least} experts at once", f"--cache {usual}, or more")
    if wanted > most:
        progress.note(f"--cache {wanted}: no layer has more than {most} experts, and the cache holds all of them")
    return min(wanted, most)
