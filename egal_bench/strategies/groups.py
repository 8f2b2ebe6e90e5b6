"""Groups of strategies, which stand for their members in a list of strategies."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from egal_bench.strategies.declaration import Strategy
from egal_bench.strategies.pool import NEEDS
from egal_bench.strategies.registry import GROUPS, available, find

ALL = "all"  # every built-in strategy and every variant of one that belongs to a group
EGAL = "all-egal"  # the group `egal`: that name alone is the strategy


def expand(names: Iterable[str], given: Collection[str] = NEEDS) -> list[str]:
    """Return the specifications that `names` stand for, each once, in the order of their first mention.

    A name is a group, `all`, or a specification, which stands for itself. `egal` is the strategy; its group is written
    `all-egal`. A strategy that reads the true labels of the pool is a member of `controls` and `all` alone.

    Args:
        names: a list of strategies, as `--strategies` takes it.
        given: what strategies can read in this comparison; groups leave out those that need more.
    """
    members: dict[str, list[str]] = {ALL: [], **{EGAL if group == "egal" else group: [] for group in GROUPS}}
    for strategy in available().values():
        if strategy.source:
            continue
        for specification, groups in _memberships(strategy):
            if find(specification).needs - set(given):
                continue
            members[ALL].append(specification)
            for group in groups & {"controls"} if strategy.oracle else groups:
                members[EGAL if group == "egal" else group].append(specification)
    return list(dict.fromkeys(member for name in names for member in members.get(name.strip(), [name])))


def _memberships(strategy: Strategy) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the strategy and its variants as specifications, each with its groups."""
    yield strategy.name, strategy.groups
    variants = dict.fromkeys(parameters for group in strategy.variants.values() for parameters in group)
    for parameters in variants:
        yield (
            f"{strategy.name}({parameters})",
            frozenset(group for group, members in strategy.variants.items() if parameters in members),
        )
