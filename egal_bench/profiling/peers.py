"""The same numbers by other libraries, each used on a batch as its documentation shows."""

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
from egal_bench.models.network import Network
from egal_bench.models.precision import autocast
from egal_bench.scoring.pool_pass import explained
from egal_kernels import PackedRoi

# largest mean |difference of Dice| by precision of the trunk: one pixel at the edge of a map moves it by 1e-4
TOLERANCE = {"float32": 0.005, "bfloat16": 0.02}

MapOf = Callable[[Tensor], Tensor]  # inputs [B, C, H, W] → CAMs [B, H, W], 0 to 1


@dataclass(frozen=True)
class Library:
    """Another library that computes Grad-CAMs.

    Attributes:
        module: what is imported.
        convention: the convention of `acquire` that it follows.
        map_of: (model, predicted classes [B]) → function from inputs to CAMs.
        dice: (thresholded CAMs, masks), both bool [B, H, W] → Dice [B].
        same_precision: whether it gets the trunk's precision and channels_last; otherwise it runs as documented, in
            float32 and PyTorch's default memory format.
    """

    module: str
    convention: str
    map_of: Callable[[nn.Sequential, Tensor], MapOf]
    dice: Callable[[Tensor, Tensor], Tensor]
    same_precision: bool = False


@dataclass(frozen=True)
class Peer:
    """A library that is ready to run on one batch.

    Attributes:
        run: computes the Dice [B] of the batch's thresholded CAMs with their ROIs.
        difference: mean |Dice − Dice of `acquire`|.
        problem: why the library must not be timed; "": its Dice agrees with that of `acquire`.
    """

    run: Callable[[], Tensor]
    difference: float = 0.0
    problem: str = ""


def peers(
    network: Network, images: Tensor, roi: PackedRoi, config: Config, libraries: Mapping[str, Library] | None = None
) -> dict[str, Peer]:
    """Return a Peer per library, by name; each is compared with `acquire` in the convention of that library.

    MONAI and captum have to be told the class to explain; they get it without computing it. Each peer keeps the
    computation graph of its last run.

    Args:
        network: on the device.
        images: one batch, on the device.
        roi: the ROIs of this batch.
        config: with device and precision resolved.
        libraries: each library by its name; None: LIBRARIES.
    """
    chosen = LIBRARIES if libraries is None else libraries
    return {name: _peer(library, network, images, roi, config) for name, library in chosen.items()}


def _peer(library: Library, network: Network, images: Tensor, roi: PackedRoi, config: Config) -> Peer:
    if importlib.util.find_spec(library.module) is None:
        return Peer(lambda: torch.empty(0), problem="not installed: pip install 'egal-bench[peers]'")
    precision = config.precision if library.same_precision else "float32"
    layout = torch.channels_last if library.same_precision else torch.contiguous_format
    copy = deepcopy(network).to(memory_format=layout)
    trunk = _Float32Trunk(copy.trunk, config.device, precision)
    model = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), copy.head).eval()
    with torch.inference_mode():
        with autocast(config.device, precision):
            maps = network.features(images)
        convention = config.model_copy(update={"explain_convention": library.convention})
        reference = explained(network, maps, roi, convention)
    mask = roi.unpack(torch.bool)

    def run() -> Tensor:
        inputs = copy.prepared(images).contiguous(memory_format=layout)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about a library's hooks are not for users of egal-bench
            cam = map_of(inputs)
        if cam.shape[1:] != mask.shape[1:]:
            cam = F.interpolate(cam[:, None], mask.shape[1:], mode="bilinear")[:, 0]
        return library.dice(cam.to(mask.device) >= config.threshold, mask).cpu()

    try:
        map_of = library.map_of(model, reference.predicted.clone())
        return checked_peer(run, reference.dice().cpu(), (reference.cam_area > 0).cpu(), TOLERANCE[precision])
    except Exception as error:  # whatever another library raises, the rest of the profile is kept
        return Peer(run, problem=f"failed with {type(error).__name__}: {brief(error)}")


class _Float32Trunk(nn.Module):
    """A trunk that runs in its precision and returns its map in float32, since pytorch-grad-cam takes no bfloat16."""

    def __init__(self, trunk: nn.Module, device: str, precision: str) -> None:
        super().__init__()
        self.trunk, self.device, self.precision = trunk, device, precision

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the feature maps, float32 [B, C, h, w]."""
        with autocast(self.device, self.precision):
            return self.trunk(inputs).float()


def checked_peer(run: Callable[[], Tensor], expected: Tensor, comparable: Tensor, tolerance: float) -> Peer:
    """Return the Peer of `run`, with a `problem` unless its mean |Dice − expected| is within the tolerance.

    Args:
        run: computes the peer's Dice [B].
        expected: float [B], Dice of `acquire`; NaN for a sample without ROI, which does not count.
        comparable: bool [B], False for samples that do not count because their map is constant: each library treats
            these in a way of its own.
        tolerance: largest mean difference.
    """
    dice = run()
    counted = comparable & ~expected.isnan()
    if not (expected[counted] > 0).any():
        return Peer(run, problem="no Grad-CAM of the batch meets an ROI: nothing to compare")
    difference = float((dice - expected)[counted].abs().mean())
    agrees = difference <= tolerance  # False for NaN
    return Peer(run, difference, "" if agrees else f"its Dice differs from egal-bench's by {difference:.3f} on average")


def _dice(hit: Tensor, mask: Tensor) -> Tensor:
    return 2 * (hit & mask).sum((1, 2)) / (hit.sum((1, 2)) + mask.sum((1, 2)))


def _dice_helper(hit: Tensor, mask: Tensor) -> Tensor:
    from monai.metrics import DiceHelper

    helper = DiceHelper(include_background=True, reduction="none", get_not_nans=False)
    return helper(hit[:, None], mask[:, None])[:, 0]


def _min_max(cam: Tensor) -> Tensor:
    low, high = cam.amin((1, 2), keepdim=True), cam.amax((1, 2), keepdim=True)
    return (cam - low) / (high - low)


def _pytorch_grad_cam(model: nn.Sequential, predicted: Tensor) -> MapOf:
    from pytorch_grad_cam import GradCAM

    cam = GradCAM(model=model, target_layers=[model[0]])
    return lambda inputs: torch.from_numpy(cam(input_tensor=inputs, targets=None))  # None: the predicted class


def _torchcam(model: nn.Sequential, predicted: Tensor) -> MapOf:
    from torchcam.methods import GradCAM

    def run(inputs: Tensor) -> Tensor:
        with GradCAM(model, target_layer=model[0]) as cam:
            logits = model(inputs.requires_grad_())
            (low,) = cam(logits.argmax(1).tolist(), logits)
        return F.interpolate(low[:, None], inputs.shape[2:], mode="bilinear")[:, 0]

    return run


def _monai(model: nn.Sequential, predicted: Tensor) -> MapOf:
    """Return the maps of MONAI, whose batches share one class: one batch per predicted class."""
    from monai.transforms import ScaleIntensity
    from monai.visualize import GradCAM

    scale = ScaleIntensity()
    cam = GradCAM(nn_module=model, target_layers="0", postprocessing=lambda maps: torch.stack([*map(scale, maps)]))

    def run(inputs: Tensor) -> Tensor:
        out = inputs.new_empty((len(inputs), *inputs.shape[2:]))
        for k in sorted(set(predicted.tolist())):
            out[predicted == k] = cam(inputs[predicted == k], class_idx=k)[:, 0]
        return out

    return run


def _captum(model: nn.Sequential, predicted: Tensor) -> MapOf:
    from captum.attr import LayerAttribution, LayerGradCam

    cam = LayerGradCam(model, model[0])

    def run(inputs: Tensor) -> Tensor:
        low = cam.attribute(inputs, predicted)
        return _min_max(LayerAttribution.interpolate(low, tuple(inputs.shape[2:]), "bilinear")[:, 0].detach())

    return run


LIBRARIES = {
    "pytorch-grad-cam": Library("pytorch_grad_cam", "grad-cam", _pytorch_grad_cam, _dice),
    "pytorch-grad-cam (same precision)": Library(
        "pytorch_grad_cam", "grad-cam", _pytorch_grad_cam, _dice, same_precision=True
    ),
    "torch-cam": Library("torchcam", "torchcam", _torchcam, _dice),
    "MONAI GradCAM, DiceHelper": Library("monai", "monai", _monai, _dice_helper),
    "captum LayerGradCam": Library("captum", "captum", _captum, _dice),
}
