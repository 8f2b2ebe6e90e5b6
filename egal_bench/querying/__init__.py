"""From a trained network and a pool to the samples to annotate next: `egal-bench score`."""
