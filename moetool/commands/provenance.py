"""What a report was made with: a RoutingTrace enters, the versions, types and text that ran leave."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING

from moetool import __version__
from moetool.report.report import Value

if TYPE_CHECKING:
    from moetool.capture.trace import RoutingTrace

RESOLVED = ("dtype", "quantize", "quantized_share", "device", "engine")
"""Settings of a capture that may be ``auto`` among the options: here stands what they became."""
_DIGITS = 12


def made_with(trace: RoutingTrace) -> Mapping[str, Value]:
    """The ``environment`` of a report on a trace; what the trace does not tell is left out.

    ``corpus`` is a digest of the token ids and of where documents end: equal for traces of the same text.
    """
    import numpy as np

    told = {**trace.versions, **{key: trace.settings.get(key) for key in RESOLVED}}
    known: dict[str, Value] = {"moetool": __version__}
    known |= {key: value for key, value in told.items() if isinstance(value, str | float) and key not in known}
    if not trace.load_only:
        digest = sha256(str([document.tokens for document in trace.documents]).encode())
        digest.update(np.asarray(trace.tokens, "<i8").tobytes())
        known["corpus"] = digest.hexdigest()[:_DIGITS]
    return known
