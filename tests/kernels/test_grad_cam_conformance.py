"""The closed form and the `grad-cam` convention against autograd and against pytorch-grad-cam on real networks.

`pytest tests/kernels/test_grad_cam_conformance.py -s` prints the figures of docs/kernels.md.
"""

import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from egal_kernels import acquire, pack_roi
from egal_kernels.shared.recipes import RECIPES
from kernels.networks import CLASSES, Trunk, smooth_images

THRESHOLDS = (0.25, 0.5, 0.75)
# name, input (height, width); 7×7, 3×3, 3×4 and 4×2 feature maps
CASES = [("resnet18", (224, 224)), ("resnet18", (96, 96)), ("densenet121", (96, 128)), ("densenet121", (128, 64))]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1][0]}x{case[1][1]}")
def explained(request):
    """(name, size, net, images, feature map, classes, pytorch-grad-cam's maps [B, H, W])."""
    name, size = request.param
    net = Trunk(name).eval()
    images = smooth_images(2 * CLASSES, size)
    classes = torch.arange(2 * CLASSES) % CLASSES
    with GradCAM(model=net, target_layers=[net.features]) as cam:
        peer = torch.from_numpy(cam(images, [ClassifierOutputTarget(int(k)) for k in classes]))
    with torch.no_grad():
        features = net.trunk.forward_features(images)
    return name, size, net, images, features, classes, peer


def test_the_closed_form_equals_a_full_backward_pass(explained):
    _, _, net, images, _, classes, _ = explained
    net = net.double()
    images, classes = images[:CLASSES].double(), classes[:CLASSES]
    features = net.trunk.forward_features(images)
    features.retain_grad()
    logits = net.head(features.mean((2, 3)))
    logits.gather(1, classes[:, None]).sum().backward()  # through the whole network
    assert next(net.trunk.parameters()).grad.abs().sum() > 0
    alpha = features.grad.mean((2, 3))
    expected = (alpha[:, :, None, None] * features.detach()).sum(1).relu()
    maps = torch.einsum("kc,bchw->bkhw", net.head.weight.detach(), features.detach())
    closed = maps[torch.arange(len(classes)), classes].relu() / (features.shape[2] * features.shape[3])
    assert (expected.amax((1, 2)) > 0).any()
    torch.testing.assert_close(closed, expected, rtol=1e-12, atol=1e-15)

    roi = pack_roi(torch.ones(len(images), *images.shape[2:], dtype=torch.bool))
    linear = acquire(features, net.head.weight, net.head.bias, roi, classes=classes)
    any_head = acquire(features, None, None, roi, alpha=alpha, logits=logits)
    torch.testing.assert_close(linear.logits, logits.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(linear.soft_area, any_head.soft_area, rtol=1e-10, atol=1e-10)
    assert torch.equal(linear.cam_area, any_head.cam_area)
    net.float()


def test_maps_equal_those_of_pytorch_grad_cam(explained):
    name, size, net, _, features, classes, peer = explained
    weight, bias = net.head.weight.detach(), net.head.bias.detach()
    alpha = weight[classes] / (features.shape[2] * features.shape[3])
    ours = RECIPES["grad-cam"](torch.einsum("nc,nchw->nhw", alpha, features), size)
    assert (peer.amax((1, 2)) > 0.99).sum() >= CLASSES  # most class maps are positive somewhere
    difference = (ours - peer).abs().max().item()
    assert difference < 2e-6

    flips = pixels = 0
    roi = torch.rand(peer.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    for threshold in THRESHOLDS:
        out = acquire(features, weight, bias, pack_roi(roi), threshold=threshold, classes=classes)
        hit = peer >= threshold
        at_the_edge = ((peer - threshold).abs() <= difference).sum((1, 2))
        for count, mask in ((out.cam_area, hit), (out.intersection, hit & roi)):
            assert ((count - mask.sum((1, 2))).abs() <= at_the_edge).all()
        flips += ((ours >= threshold) != hit).sum().item()
        pixels += hit.numel()
    print(f"\n{name} {size[0]}x{size[1]}: map {tuple(features.shape[1:])}, max difference {difference:.1e}, "
          f"{flips} of {pixels} thresholded pixels differ")  # fmt: skip
    assert flips <= pixels * 1e-5
