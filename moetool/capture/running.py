"""What every run of a model shares: a Job enters, its loaded model or one kind of error leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moetool.capture.halving import is_out_of_memory
from moetool.capture.job import Job
from moetool.capture.quantized import bitsandbytes_settings, quantized_note
from moetool.capture.resident import load_model
from moetool.errors import MoetoolError
from moetool.progress import Progress


@contextmanager
def one_kind_of_error(job: Job, kept: str | None = None) -> Iterator[None]:
    """Whatever the model's own code raises inside becomes a MoetoolError; ``kept`` says what a failed disk leaves."""
    engine, name = job.settings["engine"], job.checkpoint.name
    try:
        yield
    except MoetoolError:
        raise
    except OSError as error:
        raise MoetoolError(f"{error.filename or name}: {error.strerror or error}", kept) from None
    except Exception as error:  # the model's code is not ours, and may raise anything
        if not is_out_of_memory(error):
            raise _failed(job, error) from error
        raise MoetoolError(
            f"{job.device.type} memory does not suffice for {name} with the {engine} engine",
            "use a smaller --batch-tokens" + ("" if engine == "stream" else ", or --engine stream"),
        ) from None


def _failed(job: Job, error: Exception) -> MoetoolError:
    engine, detail = job.settings["engine"], (str(error).strip().splitlines() or [""])[0]
    return MoetoolError(
        f"{job.checkpoint.name} does not run with the {engine} engine: {type(error).__name__}: {detail[:300]}",
        "try --engine resident" if engine == "stream" else "MOETOOL_DEBUG=1 shows where",
    )


def load_resident(job: Job, progress: Progress) -> Any:
    """The model of a job with all its weights, quantised as its settings say."""
    dtype, quantize = job.settings["dtype"], job.settings.get("quantize")
    routers = [moe.router for moe in job.stack.moe_layers]
    quantizer = bitsandbytes_settings(quantize, dtype, job.model, routers, job.device) if quantize else None
    with progress.step("loading weights"):
        model = load_model(job.checkpoint, job.config, job.model_class, dtype, job.device, quantizer)
    if quantize:
        progress.note(quantized_note(model, quantize))
    return model
