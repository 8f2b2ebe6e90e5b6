"""Statistics of comparisons: pure functions on arrays and DataFrames, which draw only from a given Generator."""
