"""The `torchcam`, `monai`, `captum` and `author` conventions against the libraries, with a full backward pass each.

`pytest tests/kernels/test_convention_conformance.py -s` prints the figures of docs/kernels.md.
"""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution, LayerGradCam
from monai.transforms import ScaleIntensity
from monai.visualize import GradCAM as MonaiGradCAM
from torchcam.methods import GradCAM as TorchGradCAM

from egal_kernels import acquire, pack_roi
from egal_kernels.shared.recipes import RECIPES
from kernels.networks import CLASSES, Trunk, smooth_images

THRESHOLDS = (0.25, 0.5, 0.75)
CASES = [("resnet18", (96, 96)), ("densenet121", (96, 128))]  # 3×3 and 3×4 feature maps


def torchcam(net, images, classes):
    with TorchGradCAM(net, target_layer=net.features) as cam:
        scores = net(images.clone().requires_grad_())
        (low,) = cam(classes.tolist(), scores)
    return F.interpolate(low[:, None], images.shape[2:], mode="bilinear")[:, 0]


def monai(net, images, classes):
    """Return MONAI's maps, one image at a time, since a batch of MONAI's shares one class."""
    cam = MonaiGradCAM(nn_module=net, target_layers="features", postprocessing=ScaleIntensity())
    return torch.cat([cam(images[i : i + 1], class_idx=int(k))[0] for i, k in enumerate(classes)])


def captum(net, images, classes):
    """Return Captum's maps, scaled by their extremes, since Captum leaves the scale to its user."""
    low = LayerGradCam(net, net.features).attribute(images, classes)
    full = LayerAttribution.interpolate(low, tuple(images.shape[2:]), "bilinear")[:, 0].detach()
    low, high = full.amin((1, 2), keepdim=True), full.amax((1, 2), keepdim=True)
    return (full - low) / (high - low)


def author(net, images, classes):
    """Return maps by the description: gradients of the features averaged to weights, ReLU, bilinear, min-max."""
    features = net.trunk.forward_features(images)
    features.retain_grad()
    net.head(features.mean((2, 3))).gather(1, classes[:, None]).sum().backward()
    low = (features.grad.mean((2, 3), keepdim=True) * features.detach()).sum(1, keepdim=True).relu()
    full = F.interpolate(low, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    full = full - full.amin((1, 2), keepdim=True)
    return full / (full.amax((1, 2), keepdim=True) + 1e-8)


PEERS = {"torchcam": torchcam, "monai": monai, "captum": captum, "author": author}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1][0]}x{case[1][1]}")
def network(request):
    """A real network, as (name, net, images, feature map, classes)."""
    name, size = request.param
    net, images = Trunk(name).eval(), smooth_images(2 * CLASSES, size)
    with torch.no_grad():
        features = net.trunk.forward_features(images)
    return name, net, images, features, torch.arange(2 * CLASSES) % CLASSES


@pytest.mark.parametrize("convention", sorted(PEERS))
def test_thresholded_maps_equal_those_of_the_library(network, convention):
    name, net, images, features, classes = network
    weight, bias = net.head.weight.detach(), net.head.bias.detach()
    peer = PEERS[convention](net, images, classes)
    size = tuple(images.shape[2:])
    class_map = torch.einsum("nc,nchw->nhw", weight[classes] / features[0, 0].numel(), features)
    positive = class_map.amax((1, 2)) > 0
    assert positive.sum() >= CLASSES
    ours = RECIPES[convention](class_map, size)
    assert not ours[~positive].any() or convention == "captum"  # a constant map is zeros
    peer = torch.where(positive[:, None, None] | (convention == "captum"), peer, 0)
    difference = (ours - peer).abs().max().item()
    assert difference < 1e-5  # a library that runs one image at a time rounds its features differently

    flips = sum(int(((ours >= threshold) != (peer >= threshold)).sum()) for threshold in THRESHOLDS)
    pixels = len(THRESHOLDS) * ours.numel()
    roi = torch.rand(peer.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    for threshold, backend in product(THRESHOLDS, ("reference", "cpu")):
        out = acquire(features, weight, bias, pack_roi(roi), threshold=threshold, classes=classes,
                      convention=convention, backend=backend)  # fmt: skip
        hit = peer >= threshold
        at_the_edge = ((peer - threshold).abs() <= difference).sum((1, 2))
        for count, mask in ((out.cam_area, hit), (out.intersection, hit & roi)):
            assert ((count - mask.sum((1, 2))).abs() <= at_the_edge).all()
        torch.testing.assert_close(out.soft_intersection, (peer * roi).sum((1, 2)), rtol=1e-5, atol=1e-2)
    assert flips <= pixels * 1e-5
    print(f"\n{convention}, {name} {size}: max difference {difference:.1e}, {flips} of {pixels} thresholded pixels")


def test_the_conventions_threshold_different_pixels(network):
    """Otherwise the tests above could not tell the conventions apart."""
    _, net, images, features, classes = network
    class_map = torch.einsum("nc,nchw->nhw", net.head.weight.detach()[classes], features)
    areas = {}
    for name, recipe in RECIPES.items():
        areas[name] = (recipe(class_map, tuple(images.shape[2:])) >= 0.5).sum((1, 2))
    assert not torch.equal(areas["torchcam"], areas["grad-cam"])
    assert not torch.equal(areas["captum"], areas["grad-cam"])


def test_the_default_of_monai_is_the_inverted_map(network):
    _, net, images, _, classes = network
    upright = monai(net, images, classes)
    default = MonaiGradCAM(nn_module=net, target_layers="features")
    positive = upright.amax((1, 2)) > 0
    assert positive.sum() >= CLASSES
    for i in positive.nonzero().flatten().tolist():
        inverted = default(images[i : i + 1], class_idx=int(classes[i]))[0, 0]
        torch.testing.assert_close(inverted, 1 - upright[i], rtol=0, atol=1e-6)
