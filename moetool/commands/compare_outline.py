"""What a run will be of, before it runs: what ``read_input`` found enters, a RoutingTrace without choices leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moetool.progress import SilentProgress

if TYPE_CHECKING:
    from moetool.capture.engine import CaptureOptions
    from moetool.capture.trace import RoutingTrace
    from moetool.checkpoint.types import Checkpoint
    from moetool.corpus.documents import Document


def outline(checkpoint: Checkpoint, documents: Sequence[Document], settings: CaptureOptions) -> RoutingTrace:
    """Documents, tokens and layers of the trace to come, by config and tokenizer: no weights are read.

    Raises MoetoolError as ``prepare`` does.
    """
    from moetool.capture.job import make_header, prepare
    from moetool.capture.trace import RoutingTrace, TraceLayer

    job = prepare(checkpoint, documents, settings, SilentProgress())
    header, corpus = make_header(job), job.corpus
    layers = tuple(
        TraceLayer(chosen=np.empty((0, row["experts_per_token"]), np.uint16), **row) for row in header.layers
    )
    return RoutingTrace(
        header.model,
        corpus.documents,
        corpus.tokens,
        corpus.special,
        corpus.vocabulary,
        layers,
        header.settings,
        header.versions,
        job.shard,
    )
