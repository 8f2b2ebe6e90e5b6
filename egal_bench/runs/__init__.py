"""The grid of runs of a comparison, one run, and the engines that execute runs."""
