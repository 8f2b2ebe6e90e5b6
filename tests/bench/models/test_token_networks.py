"""Grad-CAM of vision transformers and channels-last networks, against a full backward pass through timm's own."""

import math

import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.nn import functional as F

from egal_bench.config import Config
from egal_bench.dataset import open_dataset
from egal_bench.errors import BenchError
from egal_bench.learners.frozen import FrozenLearner
from egal_bench.models.network import Network, build
from egal_bench.scoring.features import extract, open_features
from egal_bench.scoring.pool_pass import explained, score
from egal_kernels import pack_roi
from egal_shards import pack
from egal_shards.sources import phantom

CLASSES = 3
AVERAGED = {
    "global_pool": "avg",
    "fc_norm": False,
}  # the mean of the normalised patch tokens, then the head
MEMBERS = {  # (a small member, pixels per side, how timm is told to average its positions)
    "vit": ("vit_tiny_patch16_224", 64, AVERAGED),
    "registers": ("vit_small_patch14_reg4_dinov2", 56, AVERAGED),
    "rotary": ("vit_small_patch16_dinov3", 64, {"use_fc_norm": False}),
    "hybrid": ("vit_tiny_r_s16_p8_224", 64, AVERAGED),
    "xcit": ("xcit_nano_12_p8_224", 64, {"global_pool": "avg"}),
    "swin": ("swin_tiny_patch4_window7_224", 96, {}),
    "swinv2": ("swinv2_tiny_window8_256", 64, {}),
}


def perturbed_classifier(name: str, side: int, how: dict) -> nn.Module:
    """Return timm's classifier with norms moved off the initial values, which hide errors of scale and shift."""
    torch.manual_seed(1)
    classifier = timm.create_model(name, pretrained=False, num_classes=CLASSES, img_size=side, **how)
    for module in classifier.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    nn.init.normal_(classifier.get_classifier().weight, 0, 0.3)
    return classifier.eval()


def same_network(classifier: nn.Module, name: str, side: int) -> Network:
    """Return our network with all weights of timm's classifier."""
    network = build(
        name, CLASSES, image_channels=3, image_size=side, size=None, seed=0, weights=classifier.state_dict()
    )
    network.head.load_state_dict(classifier.get_classifier().state_dict())
    return network.eval()


def smooth_images(n: int, side: int) -> torch.Tensor:
    coarse = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    return (F.interpolate(coarse, side, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def grid_of(classifier: nn.Module, output: torch.Tensor) -> torch.Tensor:
    """Return the output of the final norm as a map [B, C, h, w], as pytorch-grad-cam wants it reshaped."""
    if output.ndim == 4:
        return output.permute(0, 3, 1, 2)
    patches = output[:, getattr(classifier, "num_prefix_tokens", 0) :]
    side = math.isqrt(patches.shape[1])
    return patches.reshape(len(patches), side, side, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("member", MEMBERS)
def test_counts_are_those_of_a_full_backward_pass(member):
    name, side, how = MEMBERS[member]
    classifier = perturbed_classifier(name, side, how)
    network, batch = same_network(classifier, name, side), smooth_images(2, side)
    roi = torch.zeros(2, side, side, dtype=torch.bool)
    roi[:, side // 3 : -side // 5, side // 2 :] = True
    with torch.inference_mode():
        ours = explained(network, network.features(batch), pack_roi(roi), Config())

    classifier = classifier.double()
    inputs = (batch.double() / 255 - network.mean) / network.std
    logits = classifier(inputs).detach()
    with GradCAM(classifier, [classifier.norm], reshape_transform=lambda output: grid_of(classifier, output)) as cam:
        maps = torch.from_numpy(cam(inputs, [ClassifierOutputTarget(int(k)) for k in logits.argmax(1)]))
    assert next(classifier.parameters()).grad is not None  # the backward pass reached the first layer

    torch.testing.assert_close(ours.logits.double(), logits, rtol=0, atol=1e-4 * float(logits.abs().max()))
    assert ours.predicted.tolist() == logits.argmax(1).tolist()
    hit, doubtful = maps >= 0.5, (maps - 0.5).abs() < 1e-3  # float32 sums may move a pixel over the threshold
    assert hit.any()
    assert doubtful.float().mean() < 0.01
    for counts, theirs, slack in (
        (ours.cam_area, hit, doubtful),
        (ours.intersection, hit & roi, doubtful & roi),
    ):
        assert ((counts - theirs.sum((1, 2))).abs() <= slack.sum((1, 2))).all()


def test_a_norm_behind_timms_pooling_is_applied_to_each_token():
    network = build("vit_relpos_small_patch16_224", CLASSES, image_channels=3, image_size=64, size=None, seed=0).eval()
    model = network.trunk.model
    nn.init.normal_(model.fc_norm.bias)
    with torch.no_grad():
        inputs = network.prepared(smooth_images(2, 64))
        tokens = model.fc_norm(model.forward_features(inputs))
        maps = network.trunk(inputs)
    assert torch.equal(maps.flatten(2).transpose(1, 2), tokens)  # row by row


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_every_weight_of_a_token_network_gets_a_gradient(name):
    network = build(name, CLASSES, image_channels=1, image_size=64, size=None, seed=0)
    network(torch.zeros(2, 1, 64, 64, dtype=torch.uint8)).sum().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_frozen_learner_scores_as_the_network_with_its_head(tmp_path, name):
    pack(phantom(samples=60, size=64, roi_area=0.08), tmp_path / "set", size=64, progress=False)
    dataset = open_dataset(tmp_path / "set")
    network = build(name, dataset.classes, image_channels=1, image_size=64, size=None, seed=0)
    extract(dataset, network, tmp_path / "features", "cpu")
    learner = FrozenLearner(dataset, open_features(tmp_path / "features"), Config())
    learner.fit(dataset.pool[:20], 0)
    frozen = learner.score(dataset.test, {"roi"})
    with torch.no_grad():
        network.head.weight.copy_(torch.from_numpy(learner.weight))
        network.head.bias.copy_(torch.from_numpy(learner.bias))
    direct = score(network, dataset, dataset.test, Config(), "cpu", needs={"roi"})
    tolerance = 2**-9 * abs(direct.logits).max()  # maps are cached in float16
    assert abs(frozen.logits - direct.logits).max() < tolerance
    assert abs(frozen.overlap.cam_area - direct.overlap.cam_area).max() <= 0.01 * 64 * 64
    assert direct.overlap.cam_area.max() > 0


@pytest.mark.parametrize(
    ("name", "side", "says"),
    [
        ("vit_tiny_patch16_224", 60, "cannot take 60x60 images: its patches have 16 pixels per side; choose --size 64"),
        ("pit_xs_224", 224, r"no square grid of patch tokens to explain \(its output is \(1, 1, 384\)\)"),
        ("tnt_s_patch16_224", 224, "does not say how large its patches are"),
        ("crossvit_9_240", 240, r"no square grid of patch tokens to explain \(its output is a list\)"),
    ],
)
def test_a_network_without_a_whole_grid_is_refused(name, side, says):
    with pytest.raises(BenchError, match=says):
        build(name, CLASSES, image_channels=1, image_size=side, size=None, seed=0)
