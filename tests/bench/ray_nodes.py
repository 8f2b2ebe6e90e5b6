"""A Ray cluster for the tests: one for the whole session, with two CPUs and as few processes as Ray needs."""

import os
from unittest.mock import patch

import pytest

NODE = {
    "include_log_monitor": False, "no_monitor": True, "include_dashboard": False, "object_store_memory": 80 * 2**20,
}  # fmt: skip


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory):
    """A cluster of one node with two CPUs, to which this process is connected; tests may add nodes and remove them."""
    pytest.importorskip("ray", reason="Ray is not installed")
    import ray
    from ray.cluster_utils import Cluster

    from egal_bench.runs.ray_engine import STARTS, silence

    with silence(), patch.dict(os.environ, {"EGAL_CACHE": str(tmp_path_factory.mktemp("cache"))}):
        cluster = Cluster()
        for attempt in range(STARTS):  # on a busy machine Ray may give up
            try:
                cluster.add_node(num_cpus=2, **NODE)
                break
            except Exception:
                if attempt == STARTS - 1:
                    raise
                cluster = Cluster()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        yield cluster
        ray.shutdown()
        cluster.shutdown()
