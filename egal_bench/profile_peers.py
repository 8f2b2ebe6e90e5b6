"""The same numbers by other libraries, each as its documentation uses it on a batch: by a full backward pass."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from egal_bench.config import Config
from egal_bench.model import Network
from egal_bench.pool_pass import explained
from egal_bench.precision import autocast
from egal_kernels import PackedRoi

TOLERANCE = {
    "float32": 0.005,
    "bfloat16": 0.02,
}  # of the mean |difference of Dice|: one pixel at the edge moves it by 1e-4


@dataclass(frozen=True)
class Peer:
    """`run()` gives the Dice [B] of a batch's thresholded CAMs with their ROIs.

    `why`: "" where that agrees with ours, and else what is wrong: it is then not timed.
    `difference`: mean |Dice − ours|.
    """

    run: Callable[[], Tensor]
    difference: float = 0.0
    why: str = ""


def peers(network: Network, images: Tensor, roi: PackedRoi, config: Config) -> dict[str, Peer]:
    """The installed peers on one batch on the device, by name; each compared with `acquire` in its own convention.

    As documented they run in float32 and PyTorch's default memory format. "(same precision)" is pytorch-grad-cam with
    the trunk's precision and channels_last. MONAI and captum, which have to be told the class, get it for nothing.
    """
    found = {}
    for name, (module, convention, precision, build) in PEERS.items():
        if importlib.util.find_spec(module) is None:
            found[name] = Peer(lambda: torch.empty(0), why="not installed: pip install 'egal-bench[peers]'")
            continue
        own = precision or config.precision
        used = config.model_copy(update={"explain_convention": convention, "precision": own})
        layout = torch.contiguous_format if precision else torch.channels_last
        copy = deepcopy(network).to(memory_format=layout)
        whole = nn.Sequential(copy.trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), copy.head).eval()
        with torch.inference_mode(), autocast(config.device, own):
            maps = network.features(images)
        with torch.inference_mode():
            ours = explained(network, maps, roi, used)
        map_of = build(whole, ours.predicted.clone())
        run = partial(_dice, map_of, copy, images, roi.unpack(torch.bool), used, layout)
        found[name] = _compared(run, ours.dice(), ours.cam_area > 0, own)
    return found


def _dice(
    map_of: Callable[[Tensor], Tensor], network: Network, images: Tensor, mask: Tensor, config: Config,
    layout: torch.memory_format,
) -> Tensor:  # fmt: skip
    inputs = network.prepared(images).contiguous(memory_format=layout)
    with autocast(config.device, config.precision):
        cam = map_of(inputs)
    cam = (
        F.interpolate(cam[:, None].float(), mask.shape[1:], mode="bilinear")[:, 0]
        if cam.shape[1:] != mask.shape[1:]
        else cam
    )
    hit = cam.to(mask.device) >= config.threshold
    return 2 * (hit & mask).sum((1, 2)) / (hit.sum((1, 2)) + mask.sum((1, 2)))


def _compared(run: Callable[[], Tensor], ours: Tensor, sure: Tensor, precision: str) -> Peer:
    """`sure`: samples whose map is not constant, which libraries treat in ways of their own."""
    theirs = run()
    known = sure & ~ours.isnan()
    if not known.any():
        return Peer(run, why="no sample of the batch has both an ROI and a Grad-CAM to compare")
    difference = float((theirs - ours)[known].abs().mean())
    wrong = difference > TOLERANCE[precision]
    why = f"its Dice differs from ours by {difference:.3f} in the mean: not the same computation" if wrong else ""
    return Peer(run, difference, why)


def _min_max(cam: Tensor) -> Tensor:
    low, high = cam.amin((1, 2), keepdim=True), cam.amax((1, 2), keepdim=True)
    return (cam - low) / (high - low)


def _pytorch_grad_cam(whole: nn.Sequential, predicted: Tensor) -> Callable[[Tensor], Tensor]:
    from pytorch_grad_cam import GradCAM

    cam = GradCAM(model=whole, target_layers=[whole[0]])
    return lambda inputs: torch.from_numpy(cam(input_tensor=inputs, targets=None))  # None: the predicted class


def _torchcam(whole: nn.Sequential, predicted: Tensor) -> Callable[[Tensor], Tensor]:
    from torchcam.methods import GradCAM

    def run(inputs: Tensor) -> Tensor:
        with GradCAM(whole, target_layer=whole[0]) as cam:
            scores = whole(inputs.requires_grad_())
            (low,) = cam(scores.argmax(1).tolist(), scores)
        return F.interpolate(low[:, None], inputs.shape[2:], mode="bilinear")[:, 0]

    return run


def _monai(whole: nn.Sequential, predicted: Tensor) -> Callable[[Tensor], Tensor]:
    """A batch shares one class there: so a batch for each class that was predicted."""
    from monai.transforms import ScaleIntensity
    from monai.visualize import GradCAM

    scaled = ScaleIntensity()
    cam = GradCAM(nn_module=whole, target_layers="0", postprocessing=lambda x: torch.stack([scaled(one) for one in x]))

    def run(inputs: Tensor) -> Tensor:
        out = inputs.new_empty((len(inputs), *inputs.shape[2:]))
        for k in sorted(set(predicted.tolist())):
            out[predicted == k] = cam(inputs[predicted == k], class_idx=k)[:, 0]
        return out

    return run


def _captum(whole: nn.Sequential, predicted: Tensor) -> Callable[[Tensor], Tensor]:
    from captum.attr import LayerAttribution, LayerGradCam

    cam = LayerGradCam(whole, whole[0])

    def run(inputs: Tensor) -> Tensor:
        low = cam.attribute(inputs, predicted)
        return _min_max(LayerAttribution.interpolate(low, tuple(inputs.shape[2:]), "bilinear")[:, 0].detach())

    return run


# name → (module, convention, precision and default memory format or None: the trunk's, map [B, H, W] of inputs)
PEERS = {
    "pytorch-grad-cam": ("pytorch_grad_cam", "grad-cam", "float32", _pytorch_grad_cam),
    "pytorch-grad-cam (same precision)": ("pytorch_grad_cam", "grad-cam", None, _pytorch_grad_cam),
    "torch-cam": ("torchcam", "torchcam", "float32", _torchcam),
    "MONAI GradCAM": ("monai", "monai", "float32", _monai),
    "captum LayerGradCam": ("captum", "captum", "float32", _captum),
}
