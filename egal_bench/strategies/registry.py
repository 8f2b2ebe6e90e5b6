"""The strategies that can be named: built in, by entry point, or as `module:Name`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from egal_bench.config import Config
from egal_bench.errors import BenchError, UserCodeError, unknown
from egal_bench.plugins import load_attribute
from egal_bench.specifications import Specification
from egal_bench.strategies.declaration import BoundStrategy, Strategy
from egal_bench.strategies.legacy import from_two_attributes
from egal_bench.strategies.pool import NEEDS

BUILT_IN_MODULES = (
    "random_sampling", "uncertainty", "bald", "kcenter", "badge", "typiclust", "probcover", "egal",
    "egal_predicted", "controls",
)  # fmt: skip
GROUPS = ("baselines", "uncertainty", "diversity", "egal", "controls")
_REGISTERED: dict[str, Strategy] = {}


def strategy(
    name: str, *, needs: Collection[str] = (), groups: Collection[str] = (), needs_roi: bool = False,
    needs_features: bool = False, parameter_needs: Mapping[str, str] | None = None,
    variants: Mapping[str, Sequence[str]] | None = None,
) -> Callable[[Callable[..., Any]], Strategy]:  # fmt: skip
    """Return a decorator that registers a function `(pool, *, parameter: type = default, …) -> Query` as `name`.

    Args:
        needs: what the strategy may read beyond the model's output: keys of NEEDS.
        groups: the groups of strategies, of GROUPS, that it belongs to.
        needs_roi: the earlier form of `needs={"roi"}`.
        needs_features: the earlier form of `needs={"features"}`.
        parameter_needs: see Strategy.
        variants: see Strategy.

    Raises:
        BenchError: an unknown need, or the name of a built-in strategy.
    """
    declared = frozenset(needs) | ({"roi"} if needs_roi else set()) | ({"features"} if needs_features else set())
    for need in (declared | set((parameter_needs or {}).values())) - NEEDS.keys():
        raise unknown(f"need of strategy {name!r}", need, NEEDS)

    def register(function: Callable[..., Any]) -> Strategy:
        if function.__module__.startswith(f"{__package__}."):
            source = ""
        else:
            source = inspect.getsourcefile(function) or "<unknown>"
            _load_built_in()
            if name in _REGISTERED and not _REGISTERED[name].source:
                raise BenchError(f"strategy {name!r} is built in: give yours another name")
        _REGISTERED[name] = Strategy(
            name, function, declared, frozenset(groups), source, parameter_needs or {}, variants or {}
        )
        return _REGISTERED[name]

    return register


def built_in() -> dict[str, Strategy]:
    """Return the built-in strategies by name; no code of a user is imported."""
    _load_built_in()
    return {name: strategy for name, strategy in _REGISTERED.items() if not strategy.source}


def available() -> dict[str, Strategy]:
    """Return every strategy that can be named without a module: registered ones, then those of entry points."""
    _load_built_in()
    registered = dict(_REGISTERED)
    points = _entry_points()
    return registered | {name: _foreign(name, points[name].load) for name in points if name not in registered}


def find(specification: str, config: Config | None = None) -> BoundStrategy:
    """Return the strategy of `specification`, such as `egal`, `egal(lambda=0.3)` or `my_module:Mine(k=5)`.

    Args:
        config: the settings whose flags give the parameters that the specification leaves out; None: the defaults.

    Raises:
        BenchError: an unknown name, with the nearest known one; a missing module or attribute; a wrong parameter.
        UserCodeError: the module that defines the strategy raised an exception.
    """
    parsed = Specification.parse(specification)
    return _named(parsed.name).bound(parsed, config or Config.model_validate({}))


def _named(name: str) -> Strategy:
    _load_built_in()
    if name in _REGISTERED:
        return _REGISTERED[name]
    points = _entry_points()
    if name in points:
        return _foreign(name, points[name].load)
    if ":" not in name:
        raise unknown("strategy", name, [*_REGISTERED, *points])
    return _foreign(name, lambda: load_attribute(name, f"--strategies {name}"))


def _load_built_in() -> None:
    for module in BUILT_IN_MODULES:
        importlib.import_module(f"{__package__}.{module}")


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="egal_bench.strategies")}


def _foreign(name: str, load: Callable[[], Any]) -> Strategy:
    """Return what `load` returns as the Strategy `name`; what a user's module raises is shown as the user's."""
    try:
        return _adopted(name, load())
    except BenchError:
        raise
    except (ImportError, AttributeError) as error:
        raise BenchError(f"--strategies {name}: {error}") from error
    except Exception as error:
        raise UserCodeError.of(f"strategy {name!r}", error) from error


def _adopted(name: str, candidate: Any) -> Strategy:
    """Return a foreign object as the Strategy `name`: a decorated function, or the earlier two-attribute form."""
    if isinstance(candidate, Strategy):
        return Strategy(
            name,
            candidate.function,
            candidate.needs,
            candidate.groups,
            candidate.source or "<unknown>",
            candidate.parameter_needs,
            candidate.variants,
        )
    return from_two_attributes(name, candidate)
