"Entangled weights: facts."
import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from kullback.nas import (
    EntangledConv2d,
    EntangledLayerNorm,
    EntangledLinear,
    combine_alphas,
    mix_weights,
    slice_mask,
)


def draw(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a, b): assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(7,), (7, 5), (7, 5, 5), (7, 5, 3, 5)])
def test_a_slice_of_everything_is_everything(shape):
    assert (slice_mask(shape) == 1).all()
    assert slice_mask(shape, out=3).sum() == 3*torch.ones(shape)[0].numel()


@pytest.mark.parametrize("bad", [dict(out=8), dict(out=0), dict(inp=6), dict(kernel=7), dict(kernel=2)])
def test_choices_that_do_not_fit_are_refused(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))): slice_mask((7, 5, 3, 3), **bad)


@pytest.mark.parametrize("bad", [dict(inp=1), dict(kernel=1)])
def test_axes_that_do_not_exist_are_refused(bad):
    with pytest.raises(ValueError, match="no such axis"): slice_mask((7,), **bad)


def test_the_last_alpha_is_the_fastest():
    a, b, c = (draw(n, seed=n).softmax(0) for n in (2, 3, 4))
    flat = combine_alphas(a, b, c)
    for at, (i, j, k) in enumerate(itertools.product(range(2), range(3), range(4))):
        close(flat[at], a[i]*b[j]*c[k])
    with pytest.raises(ValueError, match=r"\(2, 3\)"): combine_alphas(a, draw(2, 3))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_one_convolution_does_the_work_of_twelve(stride, size, bias):
    "Choices in no order, sizes of the image that the stride does not divide."
    conv = EntangledConv2d((6, 2), (3, 8), (5, 1, 3), stride, bias).double()
    many = copy.deepcopy(conv)
    many.mode = "outputs"
    x, raw = draw(2, 6, size, size), {name: draw(len(s), seed=9) for name, s in conv.choices.items()}
    grads = []
    for layer in (conv, many):
        leaves = {name: r.clone().requires_grad_() for name, r in raw.items()}     # off the simplex too
        y = layer(x, leaves)
        grads.append((y, *torch.autograd.grad(y.sin().sum(), [*leaves.values(), *layer.parameters()])))
    for one, other in zip(*grads): close(one, other)
    masks = torch.stack([slice_mask(conv.weight.shape, o, i, k) for o in (3, 8) for i in (6, 2) for k in (5, 1, 3)]).double()
    joint = combine_alphas(*raw.values())
    b = mix_weights(conv.bias, torch.stack([slice_mask((8,), o) for o in (3, 8)]).double(), raw["out"]) if bias else None
    b = b*raw["inp"].sum()*raw["kernel"].sum() if bias else None
    close(conv(x, raw), F.conv2d(x, mix_weights(conv.weight, masks, joint), b, stride, 2))


@pytest.mark.parametrize("mode", ["weights", "outputs"])
def test_a_corner_trains_its_slice_alone(mode):
    linear = EntangledLinear((2, 4), (3, 5), mode=mode).double()
    choice, hot = dict(inp=2, out=5), dict(inp=torch.tensor([1., 0.]).double(), out=torch.tensor([0., 1.]).double())
    plain, x = linear.slice(choice), draw(6, 4)
    linear(x, hot).square().sum().backward()
    plain(x[:, :2]).square().sum().backward()
    close(linear.weight.grad[:, :2], plain.weight.grad)
    assert (linear.weight.grad[:, 2:] == 0).all()
    close(linear.bias.grad, plain.bias.grad)


@pytest.mark.parametrize("how", [dict(), dict(statistics="slice"), dict(mode="outputs"), dict(bias=False, statistics="slice")])
def test_a_layer_norm_is_cut_out_as_it_was(how):
    norm = EntangledLayerNorm((3, 5, 8), **how).double()
    for p in norm.parameters(): p.data = draw(8, seed=3)
    for i, e in enumerate((3, 5, 8)):
        x, plain = draw(4, e), norm.slice(dict(out=e))
        y = norm(F.pad(x, (0, 8 - e)), dict(out=torch.eye(3).double()[i]))
        close(y[:, :e], plain(x))
        assert isinstance(plain, nn.LayerNorm) and (y[:, e:] == 0).all()
    close(plain.weight, norm.weight)


def test_memory_does_not_grow_with_candidates():
    from kullback.quantize import tensor_saved_bytes
    x, sizes = torch.zeros(8, 8, 16, 16), {}
    for mode, n in itertools.product(("weights", "outputs"), (1, 3)):
        conv = EntangledConv2d((8,), (4, 8, 16)[-n:], (1, 3, 5)[-n:], mode=mode)
        alphas = dict(out=torch.ones(n, requires_grad=True), kernel=torch.ones(n, requires_grad=True))
        sizes[mode, n] = tensor_saved_bytes(conv, x, alphas)
    maps = 8*16*16*16*4      # one feature map of 16 channels, in bytes
    assert sizes["weights", 3] - sizes["weights", 1] < 1000
    assert sizes["outputs", 3] - sizes["outputs", 1] >= 8*maps
