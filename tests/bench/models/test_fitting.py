"""Checkpoints as other programs write them, into a trunk: wrappers, prefixes, channels, image sizes."""

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from egal_bench.errors import BenchError
from egal_bench.models import weights
from egal_bench.models.network import build


@pytest.fixture
def told():
    """Return the list of the lines that the user was told."""
    return []


def built(backbone="resnet10t", told=None, **how):
    settings = {"image_channels": 1, "image_size": 64, "size": None, "seed": 0} | how
    return build(backbone, 3, **settings, tell=(told if told is not None else []).append)


@pytest.fixture(scope="module")
def checkpoint():
    torch.manual_seed(7)
    return timm.create_model("resnet10t", pretrained=False, num_classes=5).state_dict()


def holds(network, checkpoint) -> bool:
    return all(torch.equal(value, checkpoint[name]) for name, value in network.trunk.state_dict().items())


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "encoder.", "model.", "module.encoder."])
def test_wrapped_and_prefixed_checkpoints_reach_the_trunk(tmp_path, checkpoint, told, wrapper, prefix):
    state = {prefix + name: value for name, value in checkpoint.items()} | {"classifier.weight": torch.zeros(5, 9)}
    torch.save({wrapper: state, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "checkpoint.pt")
    read, _ = weights.load(str(tmp_path / "checkpoint.pt"), "resnet10t")
    assert holds(built(weights=read, told=told), checkpoint)
    assert any(repr(prefix) in line for line in told) == bool(prefix)


def test_a_plain_checkpoint_with_its_classifier_is_not_worth_a_line(checkpoint, told):
    assert holds(built(weights=checkpoint, told=told), checkpoint)
    assert told == []


def test_tensors_that_the_backbone_lacks_are_told(told):
    built("resnet18", weights=timm.create_model("resnet34", pretrained=False).state_dict(), told=told)
    assert told == ["--weights for resnet18: 96 tensors are not used, such as layer1.2.conv1.weight"]


def test_a_checkpoint_with_two_networks_is_refused(checkpoint):
    twice = {f"{part}.{name}": value for part in ("student", "teacher") for name, value in checkpoint.items()}
    with pytest.raises(BenchError, match=r"hold the network 2 times, under \['student.', 'teacher.'\]"):
        built(weights=twice)


@pytest.mark.parametrize("channels", [1, 3])
def test_first_convolution_gives_the_same_output_for_grey_images(channels, told):
    """A grey image, repeated over three channels, meets the weights of one channel and the other way round."""
    source = build("small-cnn", 3, image_channels=4 - channels, image_size=32, size=None, seed=1).eval()
    target = built("small-cnn", image_channels=channels, image_size=32, weights=source.trunk.state_dict(), told=told)
    grey = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = source.features(grey)
        torch.testing.assert_close(target.eval().features(grey), expected, rtol=1e-4, atol=1e-5)
    how = "summed over 3 channels to 1" if channels == 1 else "repeated from 1 channel to 3, divided by 3"
    assert told == [f"--weights for small-cnn: 0.weight is {how}"]


def test_a_vision_transformer_takes_weights_of_another_image_size(told):
    torch.manual_seed(0)
    source = timm.create_model("vit_tiny_patch16_224", pretrained=False).state_dict()
    network = built("vit_tiny_patch16_224", weights=source, told=told)
    expected = resample_abs_pos_embed(source["pos_embed"], [4, 4], num_prefix_tokens=1)
    assert torch.equal(network.trunk.model.pos_embed, expected)
    assert torch.equal(network.trunk.model.blocks[3].mlp.fc1.weight, source["blocks.3.mlp.fc1.weight"])
    assert told == [
        "--weights for vit_tiny_patch16_224: pos_embed resampled by timm to this image size, from 1x197x192 to 1x17x192"
    ]


def test_original_names_are_converted_as_timm_does(told):
    """Return the names of ConvNeXt's authors to those of timm, which converts them when it loads its own weights."""
    source = timm.create_model("convnext_atto", pretrained=False).state_dict()
    original = {name.replace("mlp.fc", "pwconv").replace("conv_dw", "dwconv"): v for name, v in source.items()}
    original = {name.replace("head.norm.", "norm.").replace("head.fc.", "head."): v for name, v in original.items()}
    network = built("convnext_atto", weights=original, told=told)
    assert all(torch.equal(value, source[name]) for name, value in network.trunk.state_dict().items())
    assert told == ["--weights for convnext_atto: its names are converted by timm"]


@pytest.mark.parametrize("backbone", ["resnet18", "vit_tiny_patch16_224", "small-cnn", "convnext_atto"])
def test_weights_of_another_network_are_refused(backbone, checkpoint):
    with pytest.raises(BenchError, match=rf"have (no tensor|'.*' of shape).*, so they are not of {backbone}:"):
        built(backbone, weights={f"module.{name}": value for name, value in checkpoint.items()})


def test_a_checkpoint_that_contains_itself_is_refused(tmp_path):
    endless: dict = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "endless.pt")
    with pytest.raises(BenchError, match="holds no state dict"):
        weights.load(str(tmp_path / "endless.pt"), "resnet18")


@pytest.mark.parametrize("backbone", ["small-cnn", "mine:net"])
def test_timm_has_no_weights_of_other_networks(backbone):
    with pytest.raises(BenchError, match=f"timm has no weights of {backbone}; name a file"):
        weights.load("timm", backbone)
