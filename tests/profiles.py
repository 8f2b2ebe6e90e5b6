"""How thoroughly the slow searches of the tests run: `make fuzz` chooses hypothesis' profile `fuzz`."""

from hypothesis import settings

FUZZ_EXAMPLES = 20_000


def is_thorough() -> bool:
    """Return whether the profile `fuzz` is loaded."""
    return settings.default.max_examples == FUZZ_EXAMPLES
