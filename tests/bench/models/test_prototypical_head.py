"""The prototypical head: its scores, its closed-form explanation, classes without samples, and the layer explained."""

import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from timm.models.densenet import DenseNet
from torch.nn import functional as F

from egal_bench.errors import BenchError
from egal_bench.models import network as networks
from egal_bench.models.heads import EMBEDDING, UNSEEN, Head, PrototypicalHead
from egal_bench.models.last_norm import taken_from
from egal_kernels import acquire, pack_roi
from egal_kernels.shared.recipes import RECIPES

CHANNELS, CLASSES = 6, 4
LAYER = "denseblock2.denselayer3.conv2"


@pytest.fixture
def pooled():
    return torch.randn(5, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def head():
    """A head with prototypes of classes 0, 1 and 3, in float64."""
    torch.manual_seed(0)
    head = PrototypicalHead(CHANNELS, CLASSES).double()
    head.set_prototypes(head.embed(torch.randn(7, CHANNELS).double()), torch.tensor([0, 3, 1, 1, 0, 3, 3]))
    return head


def by_autograd(head: Head, pooled: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return Head.alpha(head, pooled, classes)


def test_scores_are_minus_distances_of_unit_vectors_to_class_means(head):
    torch.manual_seed(2)
    samples, labels = torch.randn(7, CHANNELS).double(), torch.tensor([0, 3, 1, 1, 0, 3, 3])
    head.set_prototypes(head.embed(samples), labels)
    u = samples @ head.projection.weight.T + head.projection.bias
    z = u / u.square().sum(1, keepdim=True).sqrt()
    assert z.shape == (7, EMBEDDING)
    for label in (0, 1, 3):
        prototype = z[labels == label].mean(0)
        expected = -(z - prototype).square().sum(1).sqrt()
        torch.testing.assert_close(head(samples)[:, label], expected)


def test_alpha_in_closed_form_is_that_of_autograd(head, pooled):
    for classes in ([0, 1, 3, 0, 1], [3] * 5):
        chosen = torch.tensor(classes)
        torch.testing.assert_close(head.alpha(pooled, chosen), by_autograd(head, pooled, chosen))


def test_training_differentiates_alpha_as_it_does_autograds(head, pooled):
    """The explanation loss needs the gradient of alpha with respect to the projection and to the features."""
    chosen = torch.tensor([0, 1, 3, 0, 1])
    gradients = []
    for alpha_of in (head.alpha, lambda *given: by_autograd(head, *given)):
        leaf = pooled.clone().requires_grad_()
        loss = alpha_of(leaf, chosen).square().sum()
        gradients.append(torch.autograd.grad(loss, [leaf, head.projection.weight]))
    for closed, automatic in zip(*gradients, strict=True):
        torch.testing.assert_close(closed, automatic)


def test_class_without_samples_is_far_below_and_harmless(head, pooled):
    scores = head(pooled)
    assert (scores[:, 2] == UNSEEN).all()
    assert ((scores[:, [0, 1, 3]] >= -2) & (scores[:, [0, 1, 3]] <= 0)).all()
    assert (scores.softmax(1)[:, 2] < 1e-7).all()
    assert not head.alpha(pooled, torch.full((5,), 2)).any()
    maps = torch.rand(5, CHANNELS, 3, 3)
    means = maps.mean((2, 3)).double()
    chosen = head(means).argmax(1)
    acquisition = acquire(
        maps, None, None, pack_roi(torch.ones(5, 12, 12, dtype=torch.bool)),
        alpha=head.alpha(means, chosen).float() / 9, logits=head(means).float(),
    )  # fmt: skip
    assert acquisition.entropy.isfinite().all()
    torch.testing.assert_close(
        acquisition.entropy.double(), torch.distributions.Categorical(logits=head(means)[:, [0, 1, 3]]).entropy(),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip


def test_head_without_any_prototype_is_undecided(pooled):
    head = PrototypicalHead(CHANNELS, CLASSES).double()
    torch.testing.assert_close(head(pooled).softmax(1), torch.full((5, CLASSES), 0.25).double())
    assert not head.alpha(pooled, torch.arange(5) % CLASSES).any()


def test_sample_that_is_its_prototype_has_a_finite_explanation(head, pooled):
    head.set_prototypes(head.embed(pooled[:1]), torch.tensor([0]))
    leaf = pooled[:1].clone().requires_grad_()
    alpha = head.alpha(leaf, torch.tensor([0]))
    assert alpha.isfinite().all()
    (head(leaf)[0, 0] + alpha.sum()).backward()
    assert leaf.grad.isfinite().all()


def tiny_densenet(seed: int) -> DenseNet:
    """Return a DenseNet whose last norm has statistics and weights of its own, in float64 evaluation mode."""
    torch.manual_seed(seed)
    model = DenseNet(growth_rate=4, block_config=(2, 3), num_classes=0, bn_size=2).eval().double()
    model.forward = model.forward_features
    norm = model.features.norm5
    for tensor in (norm.running_mean, norm.bias):
        tensor.data.normal_()
    for tensor in (norm.running_var, norm.weight):
        tensor.data.uniform_(0.3, 2)
    return model


class AuthorsNetwork(torch.nn.Module):
    """The network as one would write it: DenseNet without its last ReLU, pooling, projection, length 1, distances."""

    def __init__(self, trunk: DenseNet, head: PrototypicalHead) -> None:
        super().__init__()
        trunk.features.norm5.act = torch.nn.Identity()
        self.trunk, self.head = trunk, head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        z = F.normalize(self.head.projection(self.trunk.features(images).mean((2, 3))), dim=1)
        return -torch.cdist(z, self.head.prototypes)


@pytest.mark.parametrize("seed", [0, 1])
def test_layer_before_the_last_norm_is_explained_as_by_full_backprop(seed):
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed)).double()
    classes = torch.tensor([0, 1, 2, 1])
    trunk = tiny_densenet(seed)
    norm = taken_from(trunk, f"features.{LAYER}", "tiny")
    channels = len(norm.running_mean)
    head = PrototypicalHead(channels, 3, norm).double()
    maps = trunk(images).detach()
    pooled = maps.mean((2, 3))
    head.set_prototypes(head.embed(pooled).flip(0), torch.tensor([0, 1, 2, 2]))  # no sample is its own prototype

    whole = AuthorsNetwork(tiny_densenet(seed), head)
    recorded = {}
    layer = whole.trunk.get_submodule(f"features.{LAYER}")
    handle = layer.register_forward_hook(lambda module, given, output: recorded.update(a=output))
    scores = whole(images)
    handle.remove()
    torch.testing.assert_close(head(pooled), scores)
    (gradient,) = torch.autograd.grad(scores.gather(1, classes[:, None]).sum(), recorded["a"])
    class_map = (gradient.mean((2, 3), keepdim=True) * recorded["a"]).sum(1)

    alpha = head.alpha(pooled, classes) / (maps.shape[2] * maps.shape[3])
    torch.testing.assert_close(torch.einsum("bc,bchw->bhw", alpha, maps), class_map)
    assert not alpha[:, :-4].any()

    cams = GradCAM(whole, [layer])(images, [ClassifierOutputTarget(int(k)) for k in classes])
    full = RECIPES["grad-cam"](class_map, (64, 64)).detach()
    positive = class_map.amax((1, 2)) > 0
    assert positive.any()
    torch.testing.assert_close(torch.from_numpy(cams).double()[positive], full[positive], rtol=1e-5, atol=1e-5)


def test_authors_network_is_that_of_torchvision_explained_at_its_last_convolution():
    """Same weights, hooks and a backward pass as its author would write them: the scores and class maps agree."""
    from torchvision.models import densenet121

    torch.manual_seed(0)
    original = densenet121(weights=None).eval()
    for name in ("weight", "bias", "running_mean"):
        getattr(original.features.norm5, name).data.normal_(mean=0.5)
    original.features.norm5.running_var.data.uniform_(0.3, 2)
    network = networks.build(
        "densenet121.tv_in1k", 3, image_channels=3, image_size=96, size=None, seed=1, weights=original.state_dict(),
        head="prototypical", explain_layer="denseblock4.denselayer16.conv2",
    ).eval()  # fmt: skip
    images = torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = network.features(images)
        pooled = maps.mean((2, 3))
        network.head.set_prototypes(network.head.embed(pooled), torch.tensor([1, 2, 0]))
        classes = torch.tensor([0, 1, 2])
        alpha = network.head.alpha(pooled, classes) / maps[0, 0].numel()

    recorded = {}
    layer = original.features.denseblock4.denselayer16.conv2
    layer.register_forward_hook(lambda module, given, output: recorded.update(a=output))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    z = F.normalize(network.head.projection(original.features((images / 255 - mean) / std).mean((2, 3))), dim=1)
    scores = -(z[:, None] - network.head.prototypes).norm(dim=2)
    (gradient,) = torch.autograd.grad(scores.gather(1, classes[:, None]).sum(), recorded["a"])
    class_map = (gradient.mean((2, 3), keepdim=True) * recorded["a"]).sum(1)
    torch.testing.assert_close(network(images), scores, rtol=1e-4, atol=1e-4)
    ours = torch.einsum("bc,bchw->bhw", alpha, maps)
    assert class_map.abs().max() > 0
    torch.testing.assert_close(ours / class_map.abs().max(), class_map / class_map.abs().max(), rtol=1e-3, atol=1e-3)
    assert torch.equal(alpha[:, :-32], torch.zeros(3, 1024 - 32))


def test_whole_network_is_explained_in_closed_form():
    network = networks.build(
        "small-cnn", 3, image_channels=1, image_size=32, size=None, seed=0, head="prototypical"
    ).eval()  # fmt: skip
    batch = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    maps = network.features(batch).detach().requires_grad_()
    network.head.set_prototypes(network.head.embed(maps.mean((2, 3))), torch.tensor([0, 2, 2]))
    classes = torch.tensor([2, 0, 2])
    scores = network.head(maps.mean((2, 3)))
    (gradient,) = torch.autograd.grad(scores.gather(1, classes[:, None]).sum(), maps)
    alpha = network.head.alpha(maps.mean((2, 3)), classes) / (maps.shape[2] * maps.shape[3])
    torch.testing.assert_close(alpha, gradient.mean((2, 3)))
    torch.testing.assert_close(network(batch), scores)


@pytest.mark.parametrize(
    ("backbone", "layer", "message"),
    [
        ("small-cnn", LAYER, "--explain-layer .*only the last convolution of a DenseNet can be named, and small-cnn"),
        ("densenet121", "denseblock4.denselayer15.conv2", "can be named: denseblock4.denselayer16.conv2"),
    ],
)
def test_layer_without_a_closed_form_is_refused(backbone, layer, message):
    with pytest.raises(BenchError, match=message):
        networks.build(
            backbone, 3, image_channels=1, image_size=32, size=None, seed=0, head="prototypical", explain_layer=layer
        )
