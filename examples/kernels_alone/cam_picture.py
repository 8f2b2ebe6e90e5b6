"""The kernels alone, on a timm model: how well does the Grad-CAM of an image overlap its ROI? With a picture.

    python cam_picture.py IMAGE MASK OUT.png [--model resnet18] [--pretrained]

IMAGE is any image file; MASK is an image of the same size, not 0 inside the ROI.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from egal_kernels import Acquisition, acquire, explain, pack_roi

SIDE = 224  # pixels
THRESHOLD = 0.5


def read(image: Path, mask: Path, config: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Return pixels uint8 [H, W, 3], the input of the model [1, 3, H, W], and the ROI bool [1, H, W]."""
    size = (SIDE, SIDE)
    pixels = torch.from_numpy(np.array(Image.open(image).convert("RGB").resize(size)))
    roi = torch.from_numpy(np.array(Image.open(mask).convert("L").resize(size, Image.Resampling.NEAREST))) > 0
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    return pixels, ((pixels.permute(2, 0, 1) / 255 - mean) / std)[None], roi[None]


@torch.no_grad()
def explained(model: torch.nn.Module, images: Tensor, roi: Tensor) -> tuple[Acquisition, Tensor]:
    """Return what `acquire` says of the predicted class, and its class map [B, h, w].

    `explain` takes any head, at the price of a backward pass through the head alone. For global average pooling and one
    linear layer `acquire(features, fc.weight, fc.bias, roi)` gives the same without it.
    """
    explanation = explain(model.forward_head, model.forward_features(images))
    acquisition = acquire(
        explanation.features, None, None, pack_roi(roi), alpha=explanation.alpha, logits=explanation.logits,
        threshold=THRESHOLD,
    )  # fmt: skip
    return acquisition, torch.einsum("bc,bchw->bhw", explanation.alpha, explanation.features)


def grad_cam(class_map: Tensor) -> Tensor:
    """Return the Grad-CAM [H, W] of a class map [h, w] by the convention `grad-cam`: ReLU, min-max, resize, min-max."""
    low = class_map.relu()
    low = (low - low.min()) / (1e-7 + (low - low.min()).max())
    full = F.interpolate(low[None, None], (SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0]
    return (full - full.min()) / (1e-7 + (full - full.min()).max())


def picture(pixels: Tensor, cam: Tensor, roi: Tensor) -> Image.Image:
    """Return the image with its Grad-CAM in red and the outline of its ROI [H, W] in green."""
    red = torch.tensor([255.0, 0.0, 0.0])
    shown = pixels + 0.6 * cam[..., None] * (red - pixels)
    inner = -F.max_pool2d(-roi[None].float(), 3, 1, 1)[0]  # eroded by one pixel
    shown[roi & (inner == 0)] = torch.tensor([0.0, 255.0, 0.0])
    return Image.fromarray(shown.round().to(torch.uint8).numpy())


def main() -> None:
    """Explain one image."""
    parser = argparse.ArgumentParser()
    for name in ("image", "mask", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--model", default="resnet18", help="a convolutional network of timm")
    parser.add_argument("--pretrained", action="store_true", help="download the weights; otherwise they are random")
    args = parser.parse_args()

    torch.manual_seed(0)
    model = timm.create_model(args.model, pretrained=args.pretrained).eval()
    pixels, images, roi = read(args.image, args.mask, timm.data.resolve_model_data_config(model))
    acquisition, class_maps = explained(model, images, roi)
    picture(pixels, grad_cam(class_maps[0]), roi[0]).save(args.out)
    print(
        f"class {acquisition.predicted.item()}, entropy {acquisition.entropy.item():.3f} nats, Dice of Grad-CAM and "
        f"ROI {acquisition.dice('nan').item():.3f}, soft Dice {acquisition.soft_dice('nan').item():.3f}: {args.out}"
    )


if __name__ == "__main__":
    main()
