"""Compile the CPU kernels that the tests call, so that the processes of the tests find them in the cache on disk.

`make test` does this beside the checks of style and types.
"""

import torch

from egal_kernels import acquire, cam_loss, pack_roi

for dtype in (torch.float32, torch.bfloat16, torch.float16):
    features = torch.rand(2, 5, 3, 3).to(dtype).requires_grad_()
    weight, roi = torch.rand(5, 5, requires_grad=True), pack_roi(torch.ones(2, 8, 8, dtype=torch.bool))
    acquire(features.detach(), weight.detach(), None, roi, backend="cpu")
    cam_loss(features, weight, roi, torch.tensor([0, 1]), backend="cpu").sum().backward()
