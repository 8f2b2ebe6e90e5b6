"""Every convention against its library on awkward maps: constant, one peak in a corner, negative, tied peaks."""

import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from egal_kernels import acquire, pack_roi
from kernels.networks import CLASSES, Trunk, smooth_images
from kernels.test_convention_conformance import PEERS

SIDE, SIZE = 3, 96
MAPS = {
    "corner": torch.tensor([[2.0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    "corner of noise": torch.tensor([[0.5, -1, 0.25], [-0.5, 0.125, -2], [0.25, -0.125, 3]]),
    "ties": torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]]),
    "tied rows": torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 1, 1]]),
    "negative": torch.tensor([[-1.0, -2, -1], [-3, -1, -2], [-1, -1, -4]]),
    "constant": torch.ones(3, 3),
    "zero": torch.zeros(3, 3),
}


class Planted(Trunk):
    """A real network whose last feature map is replaced: its first channel by one of MAPS, the others by 0.

    The first pixel of an image is the index of its map. The first weight of each class is 1, so class maps are exact.
    """

    def __init__(self):
        super().__init__("resnet18")
        self.head.weight.data[:, 0] = 1
        run, maps = self.trunk.forward_features, torch.stack(list(MAPS.values()))

        def forward_features(images):
            features = run(images)
            planted = torch.zeros_like(features)
            planted[:, 0] = maps[images[:, 0, 0, 0].long()]
            return 0 * features + planted

        self.trunk.forward_features = forward_features


def pytorch_grad_cam(net, images, classes):
    with GradCAM(model=net, target_layers=[net.features]) as cam:
        return torch.from_numpy(cam(images, [ClassifierOutputTarget(int(k)) for k in classes]))


@pytest.fixture(scope="module")
def network():
    net, images = Planted().eval(), smooth_images(len(MAPS), (SIZE, SIZE))
    images[:, 0, 0, 0] = torch.arange(len(MAPS))
    return net, images, torch.arange(len(MAPS)) % CLASSES


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("convention", ["grad-cam", *sorted(PEERS)])
def test_awkward_maps_have_the_counts_of_the_library(network, convention, backend):
    net, images, classes = network
    peer = {"grad-cam": pytorch_grad_cam, **PEERS}[convention](net, images, classes).detach()
    flat = ["constant", "zero"] if convention == "captum" else ["negative", "constant", "zero"]
    for name in flat:  # zeros, where MONAI gives the constant and Captum's scale is 0/0
        peer[list(MAPS).index(name)] = 0 if convention in ("monai", "captum") else peer[list(MAPS).index(name)]
        assert not peer[list(MAPS).index(name)].any(), name
    with torch.no_grad():
        features = net.trunk.forward_features(images)
    roi = torch.rand(peer.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    for threshold in (0.25, 0.45, 0.75):
        out = acquire(features, net.head.weight, net.head.bias, pack_roi(roi), threshold=threshold, classes=classes,
                      convention=convention, backend=backend)  # fmt: skip
        edge = ((peer - threshold).abs() <= 4e-6).sum((1, 2))  # the library rounds in another order
        for count, mask in ((out.cam_area, peer >= threshold), (out.intersection, (peer >= threshold) & roi)):
            assert ((count - mask.sum((1, 2))).abs() <= edge).all()
        assert edge.sum() <= 0.01 * peer.numel()
        torch.testing.assert_close(out.soft_intersection, (peer * roi).sum((1, 2)), rtol=1e-5, atol=1e-2)
