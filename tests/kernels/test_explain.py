"""`explain` against a full backward pass in binary64 and against pytorch-grad-cam, on whole networks."""

import re

import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from egal_kernels import ArgumentError, acquire, explain, pack_roi
from egal_kernels.methods import METHODS
from egal_kernels.shared.recipes import RECIPES
from kernels.networks import CLASSES, Trunk, smooth_images

PEERS = {"grad-cam": GradCAM, "grad-cam++": GradCAMPlusPlus, "hirescam": HiResCAM, "layercam": LayerCAM}


class Prototypes(nn.Module):
    """A head whose logits are minus the distances of the normalised embedding to the prototype of each class."""

    def __init__(self, channels):
        super().__init__()
        self.embed = nn.Linear(channels, 16)
        self.prototypes = nn.Parameter(nn.functional.normalize(torch.randn(CLASSES, 16), dim=1))

    def forward(self, features):
        embedding = nn.functional.normalize(self.embed(features.mean((2, 3))), dim=1)
        return -torch.cdist(embedding, self.prototypes)


class Parts(nn.Module):
    """A network of a trunk and a head."""

    def __init__(self, trunk, head):
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, images):
        return self.head(self.trunk(images))


def perturbed(name, **settings):
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=CLASSES, **settings)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
        if getattr(module, "gamma", None) is not None:  # ConvNeXt's layer scale: 1e-6 at first, which hides the blocks
            nn.init.uniform_(module.gamma, 0.5, 1.5)
    nn.init.normal_(net.get_classifier().weight, 0, 0.1)
    return net


def on_resnet(head):
    torch.manual_seed(1)
    trunk = Trunk("resnet18").trunk
    trunk.reset_classifier(0, "")
    return Parts(trunk, head)


def mlp():
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.ReLU(inplace=True), pool, nn.Linear(512, 32), nn.GELU(), nn.Linear(32, CLASSES))


SMALL_DENSENET = {"growth_rate": 8, "block_config": (2, 2, 3, 3)}  # of densenet121's layers, fewer and narrower

# network, layer; the outputs of the last two are written to in place by what follows them
CASES = {
    "resnet": (lambda: perturbed("resnet18"), "layer4"),
    "densenet": (lambda: perturbed("densenet121", **SMALL_DENSENET), "features"),
    "densenet, pre-norm": (
        lambda: perturbed("densenet121", **SMALL_DENSENET), "features.denseblock4.denselayer3.conv2",
    ),
    "convnext, LayerNorm head": (lambda: perturbed("convnext_atto"), "stages"),
    "prototypes": (lambda: on_resnet(Prototypes(512)), "trunk"),
    "mlp": (lambda: on_resnet(mlp()), "trunk"),
    "resnet, before a residual": (lambda: perturbed("resnet18"), "layer4.1.bn2"),
}  # fmt: skip
SIZE = (96, 64)  # maps of 3×2


def network(name):
    """Return (net in float64, layer name, images, classes)."""
    build, at = CASES[name]
    return build().eval().double(), at, smooth_images(3, SIZE).double(), torch.tensor([3, 0, 4])


def full_backward(net, at, images, classes):
    """Return the output of `at` and its gradient, image by image, by a backward pass through the whole network."""
    kept = []

    def keep(module, args, output):
        output.retain_grad()
        kept.append((output, output.detach().clone()))
        return output.clone()  # lets what follows work in place

    handle = net.get_submodule(at).register_forward_hook(keep)
    results = []
    for image, k in zip(images, classes, strict=True):
        logits = net(image[None].requires_grad_())
        logits[0, k].backward()
        results.append((kept[-1][1][0], kept[-1][0].grad[0], logits[0].detach()))
    handle.remove()
    assert next(net.parameters()).grad.abs().sum() > 0  # the pass reached the first layer
    net.zero_grad()
    return [torch.stack(column) for column in zip(*results, strict=True)]


def definition(method, a, g):
    """Return the map [h, w] of one sample by its paper's formula, channel by channel; a and g are [C, h, w]."""
    total = torch.zeros_like(a[0])
    for a_c, g_c in zip(a, g, strict=True):
        if method == "grad-cam":
            total += g_c.mean() * a_c
        elif method == "grad-cam++":
            weights = g_c**2 / (2 * g_c**2 + a_c.sum() * g_c**3 + 1e-6)
            total += (weights * g_c.clamp_min(0)).sum() * a_c
        elif method == "hirescam":
            total += g_c * a_c
        else:
            total += g_c.clamp_min(0) * a_c
    return total


def maps_of(explanation):
    return torch.einsum("bc,bchw->bhw", explanation.alpha, explanation.features)


@pytest.mark.parametrize("name", CASES)
def test_maps_equal_a_backward_pass_of_the_whole_network(name):
    net, at, images, classes = network(name)
    features, gradient, logits = full_backward(net, at, images, classes)
    for method in METHODS:
        ours = explain(net, images, at=at, classes=classes, method=method)
        torch.testing.assert_close(ours.logits, logits, rtol=1e-10, atol=1e-10)
        expected = torch.stack([definition(method, a, g) for a, g in zip(features, gradient, strict=True)])
        scale = expected.abs().max()
        assert scale > 0
        torch.testing.assert_close(maps_of(ours) / scale, expected / scale, rtol=0, atol=1e-10)
        if method == "grad-cam":
            torch.testing.assert_close(ours.features, features, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(ours.alpha, gradient.mean((2, 3)), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", list(CASES)[:5])  # the library loses activations that are overwritten in place
def test_maps_equal_pytorch_grad_cam(name):
    net, at, images, classes = network(name)
    for method in METHODS:
        with PEERS[method](model=net, target_layers=[net.get_submodule(at)]) as cam:
            peer = torch.from_numpy(cam(images, [ClassifierOutputTarget(int(k)) for k in classes]))
        ours = explain(net, images, at=at, classes=classes, method=method)
        cams = RECIPES["grad-cam"](maps_of(ours), SIZE)
        assert (peer.amax((1, 2)) > 0.99).any()
        torch.testing.assert_close(cams.float(), peer, rtol=0, atol=2e-6)  # it works in float32 from the map on
        hit = peer >= 0.5
        out = acquire(ours.features, None, None, pack_roi(hit), alpha=ours.alpha, logits=ours.logits)
        assert (out.intersection - hit.sum((1, 2))).abs().max() <= 1
        assert (out.cam_area - hit.sum((1, 2))).abs().max() <= 1


class Explosive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise AssertionError("the trunk was differentiated")


def test_the_trunk_is_neither_recorded_nor_differentiated():
    net = perturbed("resnet18").eval()
    recorded, modes = [], {}

    def watch(name):
        def hook(module, args, output):
            modes[name] = torch.is_grad_enabled()
            if output.grad_fn is not None:
                recorded.append(name)
            return Explosive.apply(output) if name == "layer4.0" else output

        return hook

    for name, module in net.named_modules():
        if name:
            module.register_forward_hook(watch(name))
    images = smooth_images(2, 64).requires_grad_()
    with pytest.raises(AssertionError, match="was differentiated"):  # the trap works
        net(images).sum().backward()
    net.zero_grad()
    recorded.clear()
    explain(net, images, at="layer4.1")
    behind = {"layer4.1", "layer4", "global_pool.pool", "global_pool.flatten", "global_pool", "fc"}
    assert "fc" in recorded
    assert set(recorded) <= behind
    assert not modes["layer4.0"]
    assert images.grad is None
    assert all(p.grad is None for p in net.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("method", METHODS)
def test_a_head_alone_equals_the_network_in_any_grad_mode(context, method):
    net = on_resnet(mlp()).eval()
    whole = explain(net, smooth_images(3, 64), at="trunk", method=method)
    with context():
        features = net.trunk(smooth_images(3, 64))
        before = features.clone()
        part = explain(net.head, features, method=method)
        again = explain(net, smooth_images(3, 64), at="trunk", method=method)
    for ours in (part, again):
        for field in ("features", "alpha", "logits"):
            torch.testing.assert_close(getattr(ours, field), getattr(whole, field), rtol=1e-5, atol=1e-6)
            assert not getattr(ours, field).requires_grad
    assert torch.equal(features, before)  # though the head begins in place


def test_the_predicted_class_is_explained_by_default():
    torch.manual_seed(2)
    head, features = Prototypes(6).eval(), torch.randn(5, 6, 3, 4)
    ours = explain(head, features)
    predicted = head(features).argmax(1)
    assert len(set(predicted.tolist())) > 1
    assert torch.equal(ours.alpha, explain(head, features, classes=predicted).alpha)
    assert not torch.allclose(ours.alpha, explain(head, features, classes=(predicted + 1) % CLASSES).alpha)


@pytest.mark.parametrize("method", METHODS)
def test_samples_do_not_affect_each_other(method):
    torch.manual_seed(3)
    head, features = Prototypes(6).eval().double(), torch.randn(5, 6, 3, 4, dtype=torch.float64)
    spoiled = features.clone()
    spoiled[2, 1, 0, 0] = torch.nan
    ours = explain(head, spoiled, method=method)
    roi = pack_roi(torch.ones(5, 8, 8, dtype=torch.bool))
    out = acquire(ours.features, None, None, roi, alpha=ours.alpha, logits=ours.logits)
    assert out.predicted.ge(0).tolist() == [True, True, False, True, True]
    for i in (0, 1, 3, 4):
        alone = explain(head, features[i : i + 1], method=method)
        torch.testing.assert_close(ours.alpha[i], alone.alpha[0], rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(ours.features[i], alone.features[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_half_precision_heads_give_alpha_in_float32(method, dtype, channels_last):
    torch.manual_seed(4)
    head, features = mlp().eval(), torch.rand(3, 512, 3, 3)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    wide = explain(head, features, method=method, classes=torch.tensor([0, 1, 2]))
    half = explain(head.to(dtype), features.to(dtype), method=method, classes=torch.tensor([0, 1, 2]))
    assert half.alpha.dtype == torch.float32
    error = (maps_of(wide) - torch.einsum("bc,bchw->bhw", half.alpha, half.features.float())).abs().max()
    assert error < 0.05 * maps_of(wide).abs().max()


def test_grad_cam_plus_plus_of_a_zero_gradient_is_zero():
    features = torch.zeros(1, 2, 2, 2)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1, bias=False)).eval()
    nn.init.constant_(head[2].weight, -1.0)
    assert explain(head, features, method="grad-cam++").alpha.tolist() == [[0.0, 0.0]]


def test_an_empty_batch_gives_empty_fields():
    ours = explain(Prototypes(6).eval(), torch.zeros(0, 6, 3, 3))
    assert (ours.alpha.shape, ours.logits.shape) == ((0, 6), (0, CLASSES))


HEAD = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)).eval()
FEATURES = torch.rand(2, 3, 4, 4)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.spare, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), HEAD

    def forward(self, images):
        return self.head(self.conv(self.conv(images)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gradcam"}, "method: unknown value 'gradcam'; did you mean 'grad-cam'?"),
        ({"inputs": torch.rand(2, 3)}, "inputs: expected shape [B, C, h, w], got [2, 3]"),
        ({"inputs": FEATURES.int()}, "inputs: expected dtype float32, bfloat16, float16, float64, got int32"),
        ({"classes": torch.tensor([0, 5])}, "classes: expected values in [0, 5), got 5"),
        ({"classes": torch.tensor([0.0, 1])}, "classes: expected dtype int64"),
        ({"classes": torch.tensor([0])}, "classes: expected shape [B=2], got [1]"),
        ({"model": lambda x: x}, "logits of model: expected shape [B=2, K], got [2, 3, 4, 4]"),
        ({"model": lambda x: (HEAD(x),)}, "logits of model: expected a tensor [B, K], got tuple"),
        ({"model": lambda x: HEAD(x.detach())}, "model: its logits have no gradient with respect to the features"),
        ({"model": lambda x: torch.zeros(2, 5)}, "model: its logits have no gradient with respect to the features"),
        ({"model": nn.Sequential(nn.BatchNorm2d(3), HEAD).train()}, "model: Sequential is in training mode"),
        (
            {"model": nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), HEAD).eval()},
            "model: layer '0' keeps no running statistics and so mixes the samples of a batch",
        ),
        ({"at": "0", "model": HEAD.forward}, "model: expected a torch.nn.Module to find the layer '0' in, got method"),
        ({"at": "con", "model": Twice().eval()}, "at: Twice has no layer 'con'; did you mean 'conv'?"),
        ({"at": "xyz", "model": Twice().eval()}, "at: Twice has no layer 'xyz'; see model.named_modules()"),
        ({"at": "conv", "model": Twice().eval()}, "at: 'conv' runs more than once in a forward pass"),
        ({"at": "spare", "model": Twice().eval()}, "at: 'spare' did not run in a forward pass"),
        ({"at": "2", "model": HEAD}, "output of '2': expected shape [B, C, h, w], got [2, 5]"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    arguments = {"model": HEAD, "inputs": FEATURES} | changes
    with pytest.raises(ArgumentError, match=re.escape(message)) as error:
        explain(arguments.pop("model"), arguments.pop("inputs"), **arguments)
    assert "\n" not in str(error.value)
    assert torch.is_grad_enabled()
    assert not any(module._forward_hooks for module in HEAD.modules())


def test_a_layer_left_in_training_mode_is_named():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout()), HEAD).eval()
    model[0][1].train()
    with pytest.raises(ArgumentError, match=r"model: layer '0\.1' is in training mode"):
        explain(model, FEATURES, at="0.0")


def test_a_channels_last_map_is_refused():
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3)).eval()
    with pytest.raises(ValueError, match=r"inputs: .* looks like a channels-last map"):
        explain(head, torch.rand(2, 4, 4, 8))
    assert explain(head, torch.rand(2, 8, 4, 4)).logits.shape == (2, 3)
