"""The Grad-CAM of every family of timm's convolutional networks, against a full backward pass of the network."""

import copy

import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from egal_bench.config import Config
from egal_bench.models.network import Network, build
from egal_bench.scoring.pool_pass import explained
from egal_kernels import pack_roi

CLASSES, SIDE = 3, 64
FAMILIES = {  # a small member each
    "resnet": "resnet10t",
    "densenet": "densenet121",
    "efficientnet": "efficientnet_b0",
    "efficientnet-lite": "tf_efficientnet_lite0",
    "mnasnet": "mnasnet_small",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv4": "mobilenetv4_conv_small_035",
    "ghostnet": "ghostnet_050",
    "convnext": "convnext_atto",
    "convnextv2": "convnextv2_atto",
    "edgenext": "edgenext_xx_small",
    "regnetx": "regnetx_002",
    "regnety": "regnety_002",
    "vgg": "vgg11_bn",
    "dla": "dla46_c",
    "vovnet": "ese_vovnet19b_dw",
    "hgnet": "hgnetv2_b0",
    "repvgg": "repvgg_a0",
    "mobilevit": "mobilevit_xxs",
}


def perturbed(backbone: str) -> Network:
    """Return a network of random weights whose norms and layer scales are moved off their initial values.

    Those values, 0 and 1, would hide errors of scale and shift.
    """
    network = build(backbone, CLASSES, image_channels=3, image_size=SIDE, size=None, seed=0)
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(getattr(module, "gamma", None), nn.Parameter):
            nn.init.uniform_(module.gamma, 0.5, 1.5)
    nn.init.uniform_(network.head.weight, -0.1, 0.3)  # maps with a peak
    return network.eval()


def images(n: int) -> torch.Tensor:
    coarse = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    smooth = nn.functional.interpolate(coarse, SIDE, mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8)


def full_backward(network: Network, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the Grad-CAM [B, H, W] in 0..1 of the predicted class, and the logits, by pytorch-grad-cam in float64."""
    network = copy.deepcopy(network).double()

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.at = network, nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network.head(self.at(self.network.trunk(x)).mean((2, 3)))

    classifier = Classifier()
    x = (batch.double() / 255 - network.mean) / network.std
    logits = classifier(x)
    with GradCAM(model=classifier, target_layers=[classifier.at]) as cam:
        maps = cam(x, [ClassifierOutputTarget(int(k)) for k in logits.argmax(1)])
    first = next(network.trunk.parameters())
    assert first.grad is not None  # the backward pass did reach the first layer
    return torch.from_numpy(maps), logits.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_a_full_backward_pass(family):
    network, batch = perturbed(FAMILIES[family]), images(2)
    maps, logits = full_backward(network, batch)
    assert (maps.amax((1, 2)) > 0.99).any()
    roi = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    roi[:, 20:50, 31:60] = True
    with torch.inference_mode():
        out = explained(network, network.features(batch), pack_roi(roi), Config())
    torch.testing.assert_close(out.logits.double(), logits, rtol=0, atol=1e-4 * float(logits.abs().max()))
    assert out.predicted.tolist() == logits.argmax(1).tolist()
    covered = maps >= 0.5
    doubtful = (maps - 0.5).abs() < 1e-3  # the reference sums in another order, so that these pixels may differ
    assert doubtful.float().mean() < 0.01
    for area, pixels, slack in (
        (out.cam_area, covered, doubtful),
        (out.intersection, covered & roi, doubtful & roi),
    ):
        assert ((area - pixels.sum((1, 2))).abs() <= slack.sum((1, 2))).all()


def test_trunk_drops_layers_that_its_map_does_not_need():
    """VGG's two layers of 4096 behind the pooling, 120 M parameters, are gone; what remains gets a gradient."""
    network = build("vgg11", CLASSES, image_channels=3, image_size=32, size=None, seed=0)
    assert sum(p.numel() for p in network.trunk.parameters()) < 10_000_000
    for backbone in ("mobilenetv3_small_050", "convnext_atto"):
        network = build(backbone, CLASSES, image_channels=3, image_size=64, size=None, seed=0)
        network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).sum().backward()
        assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_trunks_map_is_what_timm_hands_to_its_own_head():
    for backbone in ("regnetx_002", "mobilenetv4_conv_small_035", "convnext_atto"):
        original = timm.create_model(backbone, pretrained=False, num_classes=5).eval()
        network = build(
            backbone, 5, image_channels=3, image_size=64, size=None, seed=0, weights=original.state_dict()
        ).eval()
        batch = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = original((batch / 255 - network.mean) / network.std)
            logits = original.forward_head(network.features(batch))
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
