"""Text that a model writes: a checkpoint and prompts enter, the routing of every token read and written leaves.

transformers' own ``generate`` writes, so that every family's cache and position ids are its own. It is asked for one
token more than wanted: the last one that it picks is never read by the model, so no router ever sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from moetool.capture.generation_steps import Preferences, RoutedLayer, Step, StepRecorder
from moetool.capture.generation_text import encode_prompt
from moetool.capture.job import CaptureOptions, make_header, prepare
from moetool.capture.join import PER_TOKEN
from moetool.capture.routers import DecoderStack, find_decoder
from moetool.capture.running import load_resident, one_kind_of_error
from moetool.capture.tokens import load_tokenizer, token_texts
from moetool.capture.trace import RoutingTrace, TraceDocument, TraceLayer, counted_tokens_of_domain, mean_probability
from moetool.checkpoint.types import Checkpoint
from moetool.corpus.documents import Document
from moetool.errors import MoetoolError
from moetool.progress import Progress

Chat = Literal["auto", "on", "off"]
Watch = Callable[[Step], None]
NAMES = ("prompt", "against")
"""Ids of the documents in a trace of one or two prompts."""


_KEPT = (
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""Settings of a checkpoint that say which tokens its authors would not have, and the ids that it needs. Others would
draw, stop or read in another way than the options say: beams, drafts of assistants, chunks, times."""
_COLDEST, _HOTTEST = 0.01, 100.0
_ANY_TEXT = Document("any", "any", "any", "text")
"""For what asks for a corpus: a prompt is not one, which would be cut, and refused where all its tokens are special."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is picked; of the model's own generation config, what is in ``_KEPT`` is obeyed too.

    Raises MoetoolError for what cannot be computed with, or has no effect.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    """0: always the likeliest token (greedy)."""
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        given = "--top-p" if self.top_p is not None else "--top-k" if self.top_k is not None else None
        if self.temperature and not _COLDEST <= self.temperature <= _HOTTEST:
            raise MoetoolError(f"--temperature {self.temperature:g} is not 0, nor from {_COLDEST} to {_HOTTEST:g}")
        if self.seed >= 2**63:
            raise MoetoolError(f"--seed {self.seed} is too large", "take one below 2**63")
        if given and not self.temperature:
            raise MoetoolError(f"{given} has no effect at temperature 0, which is greedy", "add --temperature 1")

    def to_transformers(self) -> dict[str, Any]:
        """Arguments of ``generate``; the end of a text is looked for by us, one token later."""
        arguments: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens + 1,
            "do_sample": self.temperature > 0,
            "num_beams": 1,
            "eos_token_id": None,
            "use_cache": True,
        }
        if not self.temperature:
            return arguments
        return {**arguments, "temperature": self.temperature, "top_p": self.top_p or 1.0, "top_k": self.top_k or 0}


@dataclass(frozen=True, slots=True)
class Generation:
    """What became of one prompt; ``T`` tokens, those of the prompt first."""

    prompt: str
    """As given, before any chat template."""
    trace: RoutingTrace
    """One document, with ``prompt_tokens``."""
    texts: tuple[str, ...]
    """``[T]`` what each token adds to the text; a character of several tokens belongs to the last of them."""
    probability: NDArray[np.float32]
    """``[T]`` that the model gave each new token, at temperature 1 and before any penalty; NaN for the prompt."""
    preferences: tuple[Preferences | None, ...]
    """One per MoE layer; None where the router shows no distribution."""
    stopped: Literal["length", "end", "interrupted"]

    @property
    def prompt_tokens(self) -> int:
        """Tokens that were read at once."""
        count = self.trace.documents[0].prompt_tokens
        assert count is not None, "a generation knows its prompt"
        return count

    @property
    def text(self) -> str:
        """What was written, without special tokens."""
        new = range(self.prompt_tokens, len(self.texts))
        return "".join(self.texts[token] for token in new if not self.trace.special[token])


class Generator:
    """A model and prompts, checked before any weight is read.

    Raises MoetoolError for a model that writes no text, an empty prompt and whatever ``prepare`` refuses.
    """

    def __init__(
        self, checkpoint: Checkpoint, prompts: Sequence[str], chat: Chat, options: CaptureOptions, progress: Progress
    ) -> None:
        for prompt in prompts:
            if any(0xD800 <= ord(character) <= 0xDFFF for character in prompt):  # how Python passes on other bytes
                raise MoetoolError("the prompt is no text in UTF-8")
        if not all(prompts):
            raise MoetoolError("the prompt is empty", 'write one: moetool generate demo "Once upon a time"')
        self.documents = [Document(name, name, name, prompt) for name, prompt in zip(NAMES, prompts, strict=False)]
        settings = replace(options, engine="resident", max_length=2**31)
        with progress.step("reading config and tokenizer"):
            self.job = prepare(checkpoint, [_ANY_TEXT], settings, progress)
        assert checkpoint.folder is not None, "prepare refuses what has no weights"
        self.tokenizer = load_tokenizer(checkpoint.folder)
        self.prompts = [encode_prompt(self.tokenizer, prompt, chat) for prompt in prompts]
        self._check_writes()

    def _check_writes(self) -> None:
        from transformers import GenerationMixin

        name, config = self.job.checkpoint.name, self.job.config
        if config.is_encoder_decoder:
            raise MoetoolError(
                f"{name} has an encoder and a decoder, and moetool generate works on decoders only",
                "moetool route-stats works on it",
            )
        kind = self.job.model_class
        if not kind.can_generate():
            raise MoetoolError(
                f"{name}: {kind.__name__} writes no text: it has no head that predicts tokens",
                "moetool route-stats works on it",
            )
        if kind.generate is not GenerationMixin.generate:
            raise MoetoolError(
                f"{name}: {kind.__name__} writes in a way of its own, not token by token",
                "moetool route-stats works on it",
            )

    def check_length(self, max_new_tokens: int) -> None:
        """Raise MoetoolError where a prompt and so many new tokens exceed what the model reads."""
        longest = max(map(len, self.prompts))
        limit = self.job.settings["max_length"]
        if longest + max_new_tokens > limit:
            raise MoetoolError(
                f"the prompt has {longest} token{'s' * (longest != 1)}, and with {max_new_tokens} new"
                f" one{'s' * (max_new_tokens != 1)} that is more than the {limit} that the model reads",
                "shorten the prompt, or lower --max-new-tokens" if longest < limit else "shorten the prompt",
            )

    @property
    def layers(self) -> list[int]:
        """Numbers of the MoE layers."""
        return [moe.layer for moe in self.job.stack.moe_layers]

    def load(self, progress: Progress) -> None:
        """Read the weights."""
        with one_kind_of_error(self.job):
            self.model = load_resident(self.job, progress)
        self.model.generation_config = keep_settings(self.model.generation_config)

    @property
    def loaded_bytes(self) -> int:
        """Parameters and buffers of the loaded model, as they lie in memory."""
        return int(self.model.get_memory_footprint())

    def write(self, number: int, sampling: Sampling, watch: Watch) -> Generation:
        """Continue one of the prompts; ``watch`` is called after every forward pass.

        KeyboardInterrupt ends the text there, and goes on only where nothing was read yet.
        """
        prompt = self.prompts[number]
        stack = find_decoder(self.model, self.job.family)
        ends = _end_tokens(self.model, self.tokenizer)
        recorder = StepRecorder(stack, self.tokenizer, prompt, sampling.max_new_tokens, ends, watch)
        try:
            with one_kind_of_error(self.job), recorder.attached(self.model), torch.inference_mode():
                self._run(stack, prompt, sampling, recorder)
        except KeyboardInterrupt:
            if not recorder.steps:
                raise
        return self._collect(number, recorder, sampling)

    def _run(self, stack: DecoderStack, prompt: list[int], sampling: Sampling, recorder: StepRecorder) -> None:
        ids = torch.tensor([prompt], device=next(stack.owner.parameters()).device)
        torch.manual_seed(sampling.seed)
        self.model.generate(
            ids, attention_mask=torch.ones_like(ids), stopping_criteria=[recorder.stop], **sampling.to_transformers()
        )

    def _collect(self, number: int, recorder: StepRecorder, sampling: Sampling) -> Generation:
        steps, source = recorder.steps, self.documents[number]
        layers = [[step.layers[place] for step in steps] for place in range(len(self.layers))]
        return Generation(
            source.text,
            self._trace(source, recorder, [[part.routing for part in parts] for parts in layers], sampling),
            tuple(text for step in steps for text in step.texts),
            np.concatenate([step.probability for step in steps]),
            tuple(_join_preferences(parts) for parts in layers),
            recorder.stopped,
        )

    def _trace(
        self, source: Document, recorder: StepRecorder, layers: Sequence[Sequence[TraceLayer]], sampling: Sampling
    ) -> RoutingTrace:
        header, tokens = make_header(self.job), np.concatenate([step.tokens for step in recorder.steps])
        names = (source.id, source.domain, source.group, 0, len(tokens), source.sha256)
        documents = (TraceDocument(*names, prompt_tokens=len(recorder.prompt)),)
        special = recorder.special(tokens)
        counted = counted_tokens_of_domain(documents, special)
        return RoutingTrace(
            header.model,
            documents,
            tokens,
            special,
            token_texts(self.tokenizer, np.unique(tokens).tolist()),
            tuple(_join(parts, counted) for parts in layers),
            {**header.settings, "generation": asdict(sampling)},
            header.versions,
        )


def keep_settings(config: Any) -> Any:
    """A generation config with nothing but ``_KEPT``: no other way of writing, no limits that nobody asked for."""
    return type(config)(**{name: getattr(config, name, None) for name in _KEPT})


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens after which a text is over."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    return frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)


def _join(parts: Sequence[TraceLayer], counted: NDArray[np.int64]) -> TraceLayer:
    """The routing of one layer in all forward passes, one after another."""
    arrays: dict[str, Any] = {}
    for name in PER_TOKEN:
        values = [getattr(part, name) for part in parts]
        arrays[name] = None if any(value is None for value in values) else np.concatenate(values)
    sums = [part.probability_sum for part in parts if part.probability_sum is not None]
    if len(sums) < len(parts):
        return replace(parts[0], probability=None, probability_sum=None, **arrays)
    total = np.sum(sums, axis=0)
    return replace(parts[0], probability=mean_probability(total, counted), probability_sum=total, **arrays)


def _join_preferences(parts: Sequence[RoutedLayer]) -> Preferences | None:
    known = [part.preferences for part in parts if part.preferences is not None]
    if len(known) < len(parts):
        return None
    return Preferences(
        *(np.concatenate([getattr(part, field.name) for part in known]) for field in fields(Preferences))
    )
