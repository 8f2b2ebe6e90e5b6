"""Real networks, with random weights and perturbed batch norms, on which maps are compared with those of libraries."""

import timm
import torch

CLASSES = 5


class Trunk(torch.nn.Module):
    """A timm network as feature map → global average pooling → linear. The feature map is the output of one module."""

    def __init__(self, name: str):
        super().__init__()
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=CLASSES)
        for module in net.modules():  # a batch norm at its initial values hides errors of scale and shift
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, 0, 0.3)
                torch.nn.init.normal_(module.running_mean, 0, 0.3)
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        head = net.get_classifier()
        torch.nn.init.normal_(head.weight, 0, 0.1)
        torch.nn.init.normal_(head.bias)
        self.trunk, self.head = net, head
        self.features = torch.nn.Identity()  # the target layer, whose output is that of forward_features

    def forward(self, images):
        return self.head(self.features(self.trunk.forward_features(images)).mean((2, 3)))


def smooth_images(n, size):
    """Return n smooth random images, [n, 3, *size]."""
    coarse = torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, size, mode="bicubic")
