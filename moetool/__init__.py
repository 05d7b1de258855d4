"""moetool: what a Mixture-of-Experts model costs, where its tokens go and what its experts know."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moetool.capture.trace import open_trace
    from moetool.commands.compare import compare
    from moetool.commands.export import expert_counts
    from moetool.commands.route_stats import route_stats
    from moetool.monitor import RouterMonitor

__all__ = ["RouterMonitor", "__version__", "compare", "expert_counts", "open_trace", "route_stats"]
__version__ = "0.1.0"

_HOMES = {
    "RouterMonitor": "moetool.monitor",
    "compare": "moetool.commands.compare",
    "expert_counts": "moetool.commands.export",
    "open_trace": "moetool.capture.trace",
    "route_stats": "moetool.commands.route_stats",
}


def __getattr__(name: str) -> Any:
    """Import what is heavy when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
