"""The steps of gpu_check.py. They need PyTorch and Triton; what needs more says so in its `Step`."""
