"""What a strategy is: a function from a pool to a query, what it may read, and its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from egal_bench.config import Config
from egal_bench.errors import BenchError, UserCodeError
from egal_bench.files import file_digest
from egal_bench.parameters import STRATEGY_FIELDS
from egal_bench.specifications import Specification, parameter_name, validated, written
from egal_bench.strategies.pool import Pool
from egal_bench.strategies.query import Query


@dataclass(frozen=True)
class Strategy:
    """A function from a Pool, and the keyword parameters that its signature declares, to a Query.

    Attributes:
        name: its name in specifications, tables and legends.
        function: the strategy itself.
        needs: what it may read beyond the model's output: keys of NEEDS.
        groups: the groups of strategies, of GROUPS, that it belongs to.
        source: the file that defines it, for a strategy that is not built in; "" for a built-in one.
        parameter_needs: maps a parameter to the key of NEEDS that the strategy needs in addition if this parameter
            does not have its default value.
        variants: maps a group to specifications of parameters, such as `diverse=10`; the strategy with each of these
            belongs to the group.
    """

    name: str
    function: Callable[..., Any]
    needs: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    source: str = ""
    parameter_needs: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, Sequence[str]] = field(default_factory=dict)

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

    @property
    def modules(self) -> tuple[str, ...]:
        """Return the modules that a worker process must import to find the strategy by its plain name."""
        by_name = not self.source or ":" in self.name or self.function.__module__ == "__main__"
        return () if by_name else (self.function.__module__,)

    @property
    def source_digest(self) -> str:
        """Return the digest of the file that defines a strategy that is not built in; "" for a built-in one."""
        return file_digest(self.source) if self.source else ""

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
        """Return what the strategy, with these parameters, may read beyond the model's output."""
        defaults = type(self.parameters).model_fields
        changed = {name for name, value in self.parameters if value != defaults[name].default}
        return self.strategy.needs | {
            need for parameter, need in self.strategy.parameter_needs.items() if parameter in changed
        }

    def __call__(self, pool: Pool) -> Query:
        """Return the checked query, exactly `pool.budget` samples.

        Raises:
            BenchError: the strategy's answer is no query of this pool, or it reads what it does not declare.
            UserCodeError: a strategy that is not built in raised an exception.
        """
        try:
            answer = self.strategy(pool, **dict(self.parameters))
        except (BenchError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a strategy must not end the program
            if not self.strategy.source:
                raise
            raise UserCodeError.of(f"strategy {self.name!r}", error, self.strategy.source) from error
        return Query.checked(answer, self.name, pool.budget, len(pool))


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
