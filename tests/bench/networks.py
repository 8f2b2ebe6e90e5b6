"""Networks for tests: small, and the same whenever the seed is the same."""

from egal_bench.models.network import Network, build


def small_cnn(seed: int = 0, size: int = 32) -> Network:
    """Return the small CNN for grey images of `size` pixels per side and three classes, in training mode."""
    return build("small-cnn", 3, image_channels=1, image_size=size, size=None, seed=seed)


def batch_sizes(network: Network) -> list[int]:
    """Return a list to which each later pass of `network`, or of a copy of it, appends the size of its batch."""
    sizes: list[int] = []
    assert network.folds is not None  # found by a pass of a blank image, which is not to be counted
    network.trunk.register_forward_hook(lambda module, args, maps: sizes.append(len(maps)))
    return sizes
