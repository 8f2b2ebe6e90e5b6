"""The same numbers by other libraries, each as its documentation uses it on a batch."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from egal_bench.config import Config
from egal_bench.errors import brief
from egal_bench.model import Network
from egal_bench.pool_pass import explained
from egal_bench.precision import autocast
from egal_kernels import PackedRoi

# of the mean |difference of Dice|: one pixel at the edge moves it by 1e-4
TOLERANCE = {"float32": 0.005, "bfloat16": 0.02}

MapOf = Callable[[Tensor], Tensor]  # inputs [B, C, H, W] → CAMs [B, H, W], 0 to 1


@dataclass(frozen=True)
class Library:
    """A peer: its `module`, the `convention` of `acquire` that it follows, and what `map_of(model, classes)` builds.

    `same`: given the trunk's precision and channels_last; else float32 and PyTorch's default, as documented.
    `dice(hit, mask)`: Dice [B] of two bool [B, H, W].
    """

    module: str
    convention: str
    map_of: Callable[[nn.Sequential, Tensor], MapOf]
    dice: Callable[[Tensor, Tensor], Tensor]
    same: bool = False


@dataclass(frozen=True)
class Peer:
    """`run()` gives the Dice [B] of a batch's thresholded CAMs with their ROIs.

    `why`: "" where that agrees with ours, and else what is wrong: it is then not timed.
    `difference`: mean |Dice − ours|.
    """

    run: Callable[[], Tensor]
    difference: float = 0.0
    why: str = ""


def peers(
    network: Network, images: Tensor, roi: PackedRoi, config: Config, libraries: Mapping[str, Library] | None = None
) -> dict[str, Peer]:
    """The peers, of LIBRARIES if None, on one batch on the device, by name; each compared with `acquire` in its own
    convention.

    MONAI and captum, which have to be told the class, get it for nothing. Each keeps the graph of its last run.
    """
    asked = LIBRARIES if libraries is None else libraries
    return {name: _peer(library, network, images, roi, config) for name, library in asked.items()}


def _peer(library: Library, network: Network, images: Tensor, roi: PackedRoi, config: Config) -> Peer:
    if importlib.util.find_spec(library.module) is None:
        return Peer(lambda: torch.empty(0), why="not installed: pip install 'egal-bench[peers]'")
    precision = config.precision if library.same else "float32"
    used = config.model_copy(update={"explain_convention": library.convention, "precision": precision})
    layout = torch.channels_last if library.same else torch.contiguous_format
    copy = deepcopy(network).to(memory_format=layout)
    trunk = _Trunk(copy.trunk, config.device, precision)
    whole = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), copy.head).eval()
    with torch.inference_mode(), autocast(config.device, precision):
        maps = network.features(images)
    with torch.inference_mode():
        ours = explained(network, maps, roi, used)
    mask = roi.unpack(torch.bool)

    def run() -> Tensor:
        inputs = copy.prepared(images).contiguous(memory_format=layout)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a library says of its hooks is not for this program's user
            cam = map_of(inputs)
        if cam.shape[1:] != mask.shape[1:]:
            cam = F.interpolate(cam[:, None], mask.shape[1:], mode="bilinear")[:, 0]
        return library.dice(cam.to(mask.device) >= config.threshold, mask).cpu()

    try:
        map_of = library.map_of(whole, ours.predicted.clone())
        return agreeing(run, ours.dice().cpu(), (ours.cam_area > 0).cpu(), TOLERANCE[precision])
    except Exception as error:  # of code that is not ours, and no reason to lose the profile
        return Peer(run, why=f"failed with {type(error).__name__}: {brief(error)}")


class _Trunk(nn.Module):
    """A trunk in its precision, its map in float32: pytorch-grad-cam takes no bfloat16."""

    def __init__(self, trunk: nn.Module, device: str, precision: str) -> None:
        super().__init__()
        self.trunk, self.device, self.precision = trunk, device, precision

    def forward(self, inputs: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            return self.trunk(inputs).float()


def agreeing(run: Callable[[], Tensor], ours: Tensor, sure: Tensor, tolerance: float) -> Peer:
    """The Peer of `run`, refused unless its mean |Dice − ours| is within the tolerance; ours: float [B], NaN unknown.

    Args:
        sure: bool [B], samples whose map is not constant, which libraries treat in ways of their own.
    """
    theirs = run()
    known = sure & ~ours.isnan()
    if not (ours[known] > 0).any():
        return Peer(run, why="no Grad-CAM of the batch meets an ROI: nothing to compare")
    difference = float((theirs - ours)[known].abs().mean())
    agrees = difference <= tolerance  # False of NaN
    return Peer(run, difference, "" if agrees else f"differs from ours by a mean |ΔDice| of {difference:.3f}")


def _dice(hit: Tensor, mask: Tensor) -> Tensor:
    return 2 * (hit & mask).sum((1, 2)) / (hit.sum((1, 2)) + mask.sum((1, 2)))


def _dice_helper(hit: Tensor, mask: Tensor) -> Tensor:
    from monai.metrics import DiceHelper

    helper = DiceHelper(include_background=True, reduction="none", get_not_nans=False)
    return helper(hit[:, None], mask[:, None])[:, 0]


def _min_max(cam: Tensor) -> Tensor:
    low, high = cam.amin((1, 2), keepdim=True), cam.amax((1, 2), keepdim=True)
    return (cam - low) / (high - low)


def _pytorch_grad_cam(whole: nn.Sequential, predicted: Tensor) -> MapOf:
    from pytorch_grad_cam import GradCAM

    cam = GradCAM(model=whole, target_layers=[whole[0]])
    return lambda inputs: torch.from_numpy(cam(input_tensor=inputs, targets=None))  # None: the predicted class


def _torchcam(whole: nn.Sequential, predicted: Tensor) -> MapOf:
    from torchcam.methods import GradCAM

    def run(inputs: Tensor) -> Tensor:
        with GradCAM(whole, target_layer=whole[0]) as cam:
            scores = whole(inputs.requires_grad_())
            (low,) = cam(scores.argmax(1).tolist(), scores)
        return F.interpolate(low[:, None], inputs.shape[2:], mode="bilinear")[:, 0]

    return run


def _monai(whole: nn.Sequential, predicted: Tensor) -> MapOf:
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


def _captum(whole: nn.Sequential, predicted: Tensor) -> MapOf:
    from captum.attr import LayerAttribution, LayerGradCam

    cam = LayerGradCam(whole, whole[0])

    def run(inputs: Tensor) -> Tensor:
        low = cam.attribute(inputs, predicted)
        return _min_max(LayerAttribution.interpolate(low, tuple(inputs.shape[2:]), "bilinear")[:, 0].detach())

    return run


LIBRARIES = {
    "pytorch-grad-cam": Library("pytorch_grad_cam", "grad-cam", _pytorch_grad_cam, _dice),
    "pytorch-grad-cam (same precision)": Library("pytorch_grad_cam", "grad-cam", _pytorch_grad_cam, _dice, same=True),
    "torch-cam": Library("torchcam", "torchcam", _torchcam, _dice),
    "MONAI GradCAM, DiceHelper": Library("monai", "monai", _monai, _dice_helper),
    "captum LayerGradCam": Library("captum", "captum", _captum, _dice),
}
