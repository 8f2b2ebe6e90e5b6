"""A round of training: its loss and gradients, its augmentation, what it holds out and what it keeps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from egal_bench import model
from egal_bench.config import Config
from egal_bench.training import Objective, Samples, augmented, class_weights, held_out, train
from egal_kernels import pack_roi


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_cnn(size: int = 32) -> model.Network:
    return model.build("small-cnn", 3, image_channels=1, image_size=size, size=None, seed=0)


def made_up(count: int, size: int = 32, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images of a bright square on noise, labels of its place, and its mask; every fifth has no ROI."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 80, (count, 1, size, size), dtype=np.uint8)
    masks, labels = np.zeros((count, size, size), bool), rng.integers(0, 3, count)
    for i, label in enumerate(labels):
        y, x = 4 + 8 * label, rng.integers(2, size - 10)
        masks[i, y : y + 7, x : x + 7] = True
        images[i, 0, y : y + 7, x : x + 7] += 150
    masks[::5] = False
    return torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(masks)


def misalignment(network: model.Network, images, labels, masks) -> torch.Tensor:
    """1 − soft Dice of the true class's Grad-CAM with each mask, of the convention grad-cam: plain float64, [B]."""
    maps = torch.einsum("bc,bchw->bhw", network.head.weight.double()[labels], network.features(images).double())
    cam = low_high((maps / maps[0].numel()).relu())
    cam = low_high(F.interpolate(cam[:, None], masks.shape[1:], mode="bilinear")[:, 0])
    return 1 - 2 * (cam * masks).sum((1, 2)) / (cam.sum((1, 2)) + masks.sum((1, 2)))


def low_high(maps: torch.Tensor) -> torch.Tensor:
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (maps.amax((1, 2), keepdim=True) + 1e-7)


def test_without_options_training_is_the_plain_loop_to_the_bit():
    images, labels, _ = made_up(43)
    config = Config(steps=13, batch_size=16, learning_rate=5e-3)
    ours, theirs = small_cnn(), small_cnn().train()
    train(ours, Samples(images, labels), None, config, np.random.default_rng(3))

    rng, steps = np.random.default_rng(3), iter(range(13))
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=5e-3, weight_decay=1e-2)
    for _ in range(5):
        for rows, step in zip(np.array_split(rng.permutation(43), 3), steps, strict=False):
            how = zip(rows, rng.integers(0, 5, (len(rows), 2)), rng.random(len(rows)) < 0.5, strict=True)
            moved = np.stack([moved_by(images[i, 0].numpy(), shift, flip) for i, shift, flip in how])
            done = (step + 0.5) / 13
            rate = done / 0.25 if done < 0.25 else 0.5 + 0.5 * np.cos(np.pi * (done - 0.25) / 0.75)
            optimizer.param_groups[0]["lr"] = 5e-3 * rate
            optimizer.zero_grad()
            F.cross_entropy(theirs(torch.from_numpy(moved)[:, None]), labels[rows]).backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 10.0)
            optimizer.step()
    assert next(steps, None) is None
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert not ours.training


def moved_by(plane: np.ndarray, shift: np.ndarray, flip: bool) -> np.ndarray:
    """`plane` [H, W] moved by `shift` (y, x; the reach is no move), then mirrored left to right if `flip`."""
    side = len(plane)
    y, x = shift
    moved = np.pad(plane, side // 16)[y : y + side, x : x + side]
    return moved[:, ::-1] if flip else moved


@pytest.mark.parametrize("convention", ["grad-cam", "captum"])
def test_objective_adds_the_explanation_of_the_true_class_averaged_over_samples_with_roi(convention):
    network, (images, labels, masks) = small_cnn().eval(), made_up(11)
    value = Objective(0.7, convention)(network, Samples(images, labels, pack_roi(masks)))
    plain = F.cross_entropy(network(images), labels)
    if convention != "grad-cam":
        other = Objective(0.7)(network, Samples(images, labels, pack_roi(masks)))
        assert abs(value.item() - other.item()) > 1e-3  # the convention is passed on
        return
    there = masks.any(2).any(1)
    assert there.sum() == 8
    expected = plain.double() + 0.7 * misalignment(network, images[there], labels[there], masks[there].double()).mean()
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    parameters = [network.head.weight, *network.trunk.parameters()]
    ours = torch.autograd.grad(value, parameters)
    for gradient, reference in zip(ours, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-5)


def test_a_batch_without_any_roi_has_the_plain_loss():
    network, (images, labels, masks) = small_cnn().eval(), made_up(6)
    value = Objective(0.7)(network, Samples(images, labels, pack_roi(masks & False)))
    assert value.item() == pytest.approx(F.cross_entropy(network(images), labels).item(), abs=1e-7)


def test_bfloat16_gives_nearly_the_same_loss_and_float32_gradients():
    network, (images, labels, masks) = small_cnn().eval(), made_up(16)
    batch = Samples(images, labels, pack_roi(masks))
    full, half = (Objective(0.3, precision=precision)(network, batch) for precision in ("float32", "bfloat16"))
    assert half.dtype == torch.float32
    assert 0 < abs(full.item() - half.item()) < 0.02
    half.backward()
    assert {parameter.grad.dtype for parameter in network.parameters()} == {torch.float32}
    assert network.trunk[0].weight.grad.norm() > 0


@given(
    size=st.sampled_from([16, 31, 33, 48, 65]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=25)
def test_a_roi_drawn_into_the_image_coincides_with_it_after_every_move(size, dtype, channels, seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((7, size, size)) < rng.choice([0.02, 0.5, 1.0], (7, 1, 1))
    drawn = np.repeat(masks[:, None], channels, 1) * np.array(np.iinfo(dtype).max, dtype)
    samples = Samples(torch.from_numpy(drawn), torch.arange(7), pack_roi(torch.from_numpy(masks)))
    rows = rng.permutation(7)[:5]
    moved = augmented(samples, rows, rng)
    assert moved.images.dtype == samples.images.dtype
    np.testing.assert_array_equal(moved.labels, rows)
    found = moved.roi.unpack().numpy()
    np.testing.assert_array_equal(found[:, None].repeat(channels, 1), moved.images.numpy() > 0)
    if size // 16 and masks.all():
        assert not found.all()  # some were moved


def test_augmentation_only_flips_and_shifts():
    """An image that numbers its pixels: each output is the input moved by at most 1/16 of its side, or its mirror."""
    numbered = torch.arange(1, 257).view(1, 1, 16, 16).expand(200, -1, -1, -1)
    roi = pack_roi(numbered[:, 0] % 7 == 0)
    moved = augmented(Samples(numbered, torch.zeros(200), roi), np.arange(200), np.random.default_rng(0))
    grid, seen = numbered[0, 0].numpy(), set()
    for image, mask in zip(moved.images[:, 0].numpy(), moved.roi.unpack().numpy(), strict=True):
        hows = [((y, x), flip) for flip in (False, True) for y in range(3) for x in range(3)]
        matches = [how for how in hows if np.array_equal(moved_by(grid, *how), image)]
        assert len(matches) == 1
        seen.add(matches[0])
        np.testing.assert_array_equal(mask, (image % 7 == 0) & (image > 0))
    assert len(seen) == 18


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60))
@settings(deadline=None, max_examples=50)
def test_class_weights_are_scikit_learns_balanced_ones(labels):
    weights = class_weights(torch.tensor(labels), 6).numpy()
    present = np.unique(labels)
    np.testing.assert_allclose(weights[present], compute_class_weight("balanced", classes=present, y=labels), rtol=1e-6)
    assert weights[np.setdiff1d(np.arange(6), present)].tolist() == [0.0] * (6 - len(present))
    assert weights[labels].mean() == pytest.approx(1.0, rel=1e-5)


def test_class_balance_weighs_the_loss():
    """The loss is the mean over classes of their mean losses: a minority decides as much as the others."""
    network, (images, labels, _) = small_cnn().eval(), made_up(23)
    value = Objective(weight=class_weights(labels, 3))(network, Samples(images, labels))
    log_p = network(images).double().log_softmax(1)
    expected = -torch.stack([log_p[labels == k, k].mean() for k in range(3)]).mean()
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    assert abs(value.item() - F.cross_entropy(network(images), labels).item()) > 1e-4


def test_training_uses_the_balance_it_was_asked_for():
    images, labels, _ = made_up(40)
    trained = {}
    for balance in (False, True):
        network = small_cnn()
        config = Config(steps=2, batch_size=20, class_balance=balance)
        train(network, Samples(images, labels % 2 * 2), None, config, np.random.default_rng(0))
        trained[balance] = network.head.bias.detach().clone()
    assert not torch.equal(trained[False], trained[True])
    assert (trained[True][1] - small_cnn().head.bias[1]) < 0  # a class without samples is only pushed away


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=120),
    share=st.floats(0, 0.95),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=100)
def test_held_out_is_stratified_repeatable_and_nested(labels, share, seed):
    labels, stream = np.array(labels), np.random.SeedSequence(seed)
    held = held_out(labels, 4, share, stream)
    for k in np.unique(labels):
        of_class = held[labels == k]
        assert abs(of_class.sum() - share * len(of_class)) <= 1
        assert not of_class[0]
    np.testing.assert_array_equal(held, held_out(labels, 4, share, np.random.SeedSequence(seed)))
    some = len(labels) // 2
    np.testing.assert_array_equal(held[:some], held_out(labels[:some], 4, share, stream))


def test_other_seeds_hold_out_other_samples():
    labels = np.zeros(100, int)
    chosen = {held_out(labels, 1, 0.2, np.random.SeedSequence(seed)).tobytes() for seed in range(20)}
    assert len(chosen) == 4  # every fifth, from the second, third, fourth or fifth on


@pytest.mark.parametrize("sense", ["learnable", "nonsense"])
def test_early_stop_keeps_the_weights_of_least_held_out_nll_and_ends_after_ten_checks_without_a_lower_one(sense):
    images, labels, _ = made_up(40)
    held_images, held_labels, _ = made_up(70, seed=1)
    if sense == "nonsense":
        held_labels = (held_labels + 1) % 3  # the more is learned, the worse
    network, states = small_cnn(), []
    inner = network.features

    def spied(given):
        if not network.training and len(given) == 64:  # the first batch of a check
            states.append({name: value.clone() for name, value in network.state_dict().items()})
        return inner(given)

    network.features = spied
    config = Config(steps=40, batch_size=20, learning_rate=5e-3)
    train(network, Samples(images, labels), Samples(held_images, held_labels), config, np.random.default_rng(0))
    final = {name: value.clone() for name, value in network.state_dict().items()}
    network.features = inner
    nll = []
    for state in states:
        network.load_state_dict(state)
        with torch.no_grad():
            nll.append(F.cross_entropy(network(held_images).double(), held_labels).item())
    best = int(np.argmin(nll))
    assert len(states) == min(20, best + 1 + 10)
    assert (best > 12) == (sense == "learnable")
    for name, value in final.items():
        assert torch.equal(value, states[best][name]), name


def test_16_bits_are_moved_and_flipped_as_8_are():
    eight = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32)).astype(np.uint8))
    sixteen = torch.from_numpy(257 * eight.numpy().astype(np.uint16))
    labels, rows = torch.zeros(6, dtype=torch.int64), np.arange(6)
    of_eight, of_sixteen = (
        augmented(Samples(images, labels, None), rows, np.random.default_rng(1)).images for images in (eight, sixteen)
    )
    assert of_sixteen.dtype == torch.uint16
    assert not torch.equal(of_eight, eight)
    assert np.array_equal(of_sixteen.numpy(), 257 * of_eight.numpy().astype(np.uint16))
