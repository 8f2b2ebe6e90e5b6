"""Fair, fast comparisons of acquisition strategies for active learning on medical images."""

from importlib.metadata import version

__version__ = version("egal-bench")
__all__ = ["Config", "__version__", "compare", "load", "strategy"]

_HOME = {"Config": "config", "compare": "comparison", "load": "results", "strategy": "strategies"}


def __getattr__(name: str):  # type: ignore[no-untyped-def]
    """The public names, imported on first use: the command line must answer before torch is loaded."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
