"""The strategies that can be named: built in, by entry point, or as `module:Name`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from egal_bench.config import Config
from egal_bench.errors import BenchError, UserCodeError, unknown
from egal_bench.parameters import STRATEGY_FIELDS
from egal_bench.specifications import Specification, parameter_name, validated, written
from egal_bench.strategies.pool import NEEDS, Pool
from egal_bench.strategies.query import Query

BUILT_IN_MODULES = ("random_sampling", "uncertainty", "egal")
GROUPS = ("baselines", "uncertainty", "diversity", "egal", "controls")
_REGISTERED: dict[str, Strategy] = {}


@dataclass(frozen=True)
class Strategy:
    """A function from a Pool, and the keyword parameters that its signature declares, to a Query.

    Attributes:
        name: its name in specifications, tables and legends.
        function: the strategy itself.
        needs: what it may read beyond the model's output: keys of NEEDS.
        groups: the groups of strategies, of GROUPS, that it belongs to.
        source: the file that defines it, for a strategy that is not built in; "" for a built-in one.
    """

    name: str
    function: Callable[..., Any]
    needs: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    source: str = ""

    def __call__(self, pool: Pool, **parameters: Any) -> Query:
        """Return the query of the function with these parameters, the declared defaults for the others."""
        return self.function(pool, **parameters)

    @property
    def summary(self) -> str:
        """Return the first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def oracle(self) -> bool:
        """Return whether it reads true labels of the pool, as no real study can."""
        return "pool-labels" in self.needs

    @cached_property
    def parameters(self) -> type[BaseModel]:
        """Return the pydantic model of the keyword-only parameters of the function."""
        return _parameters(self.name, self.function)

    def bound(self, specification: Specification, config: Config) -> BoundStrategy:
        """Return the strategy with the parameters of `specification`, and those of the flags where it has none."""
        flags = {name: getattr(config, name) for name in STRATEGY_FIELDS}
        values = validated(specification, self.parameters, flags)
        return BoundStrategy(written(self.name, values), self, values)


@dataclass(frozen=True)
class BoundStrategy:
    """A strategy with all its parameters; `name` is its canonical specification."""

    name: str
    strategy: Strategy
    parameters: BaseModel

    @property
    def needs(self) -> frozenset[str]:
        """Return what the strategy may read beyond the model's output."""
        return self.strategy.needs

    def __call__(self, pool: Pool) -> Query:
        """Return the checked query, exactly `pool.budget` samples.

        Raises:
            BenchError: the strategy's answer is no query of this pool, or it reads what it does not declare.
            UserCodeError: a strategy that is not built in raised an exception.
        """
        try:
            answer = self.strategy(pool, **dict(self.parameters))
        except BenchError:
            raise
        except Exception as error:
            if not self.strategy.source:
                raise
            raise UserCodeError.of(f"strategy {self.name!r}", error, self.strategy.source) from error
        return Query.checked(answer, self.name, pool.budget, len(pool))


def strategy(
    name: str, *, needs: Collection[str] = (), groups: Collection[str] = (), needs_roi: bool = False,
    needs_features: bool = False,
) -> Callable[[Callable[..., Any]], Strategy]:  # fmt: skip
    """Return a decorator that registers a function `(pool, *, parameter: type = default, …) -> Query` as `name`.

    Args:
        needs: what the strategy may read beyond the model's output: keys of NEEDS.
        groups: the groups of strategies, of GROUPS, that it belongs to.
        needs_roi: the earlier form of `needs={"roi"}`.
        needs_features: the earlier form of `needs={"features"}`.

    Raises:
        BenchError: an unknown need, or the name of a built-in strategy.
    """
    declared = frozenset(needs) | ({"roi"} if needs_roi else set()) | ({"features"} if needs_features else set())
    for need in declared - NEEDS.keys():
        raise unknown(f"need of strategy {name!r}", need, NEEDS)

    def register(function: Callable[..., Any]) -> Strategy:
        if function.__module__.startswith(f"{__package__}."):
            source = ""
        else:
            source = inspect.getsourcefile(function) or "<unknown>"
            _load_built_in()
            if name in _REGISTERED and not _REGISTERED[name].source:
                raise BenchError(f"strategy {name!r} is built in: give yours another name")
        _REGISTERED[name] = Strategy(name, function, declared, frozenset(groups), source)
        return _REGISTERED[name]

    return register


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
    module, colon, attribute = name.partition(":")
    if not colon:
        raise unknown("strategy", name, [*_REGISTERED, *points])
    if os.getcwd() not in sys.path:  # a console script does not look beside itself
        sys.path.append(os.getcwd())
    return _foreign(name, lambda: getattr(importlib.import_module(module), attribute))


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
    from egal_bench.strategies.legacy import from_two_attributes

    if isinstance(candidate, Strategy):
        return Strategy(name, candidate.function, candidate.needs, candidate.groups, candidate.source or "<unknown>")
    return from_two_attributes(name, candidate)


def _parameters(name: str, function: Callable[..., Any]) -> type[BaseModel]:
    signature = inspect.signature(function).parameters.values()
    keywords = [parameter for parameter in signature if parameter.kind is parameter.KEYWORD_ONLY]
    hints = get_type_hints(function, include_extras=True) if keywords else {}
    fields: dict[str, Any] = {}
    for keyword in keywords:
        if keyword.default is keyword.empty or keyword.name not in hints:
            raise BenchError(
                f"strategy {name!r}: its parameter {parameter_name(keyword.name)} needs a type and a default"
            )
        fields[keyword.name] = (hints[keyword.name], keyword.default)
    return create_model(f"Parameters of {name}", __config__=ConfigDict(extra="forbid", frozen=True), **fields)
