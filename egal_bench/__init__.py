"""Fair, fast comparisons of acquisition strategies for active learning on medical images."""

from importlib.metadata import version

__version__ = version("egal-bench")
__all__ = ["Config", "__version__", "compare", "load", "strategy"]

_MODULES = {"Config": "config", "compare": "runs.comparison", "load": "tables.results", "strategy": "strategies"}


def __getattr__(name: str):  # type: ignore[no-untyped-def]
    """Import a public name on first use, so that the command line answers before torch is loaded."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
