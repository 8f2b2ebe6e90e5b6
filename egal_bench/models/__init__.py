"""Networks, heads, weights, precision, devices, and the settings of the process that computes with them."""
