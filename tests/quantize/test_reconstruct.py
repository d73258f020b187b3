"Rebuilt layers: spaces of codes, never worse than rounding, refusals."
import pytest
import torch
from draws import normal
from torch import nn
from torch.testing import assert_close

from kullback.quantize import (
    QuantizedLayer,
    adaround,
    nupes_reconstruct,
    power_dequantize,
    power_exponent_search,
    power_quantize,
    reconstruct_model,
    soft_round,
)


def linear(seed=0, n=7, m=3):
    layer = nn.Linear(n, m).double()
    with torch.no_grad():
        layer.weight.copy_(normal(m, n, seed=seed))
        layer.weight[0, 0] = 0.
    return layer, normal(40, n, seed=seed + 1) + 2*normal(40, 1, seed=seed + 2)


def gap(layer, x, weight): return (x @ (weight - layer.weight.detach()).mT).square().sum()


@pytest.mark.parametrize("seed", range(4))
def test_spaces_and_never_worse(seed):
    layer, x = linear(seed)
    g = torch.Generator().manual_seed(seed)
    a, _ = power_exponent_search([layer.weight], 3, dim=0)
    w = layer.weight.detach()
    codes, M = power_quantize(w, a, 3, dim=0)
    u = 3*w.sign()*(w/M).abs()**a
    start = gap(layer, x, power_dequantize(codes, M, a, 3))
    up_down = adaround(layer, x, 3, 80, lr=.1, a=float(a), generator=g)
    held = nupes_reconstruct(layer, x, x, 3, learn_exponent=False, n_steps=80, lr_codes=.1, neighbours=True, generator=g)
    for new in (up_down, held):
        assert ((new.codes - u).abs() <= 1 + 1e-9).all()
        assert gap(layer, x, new.weight) <= start*(1 + 1e-9)
    for learn in (dict(), dict(learn_codes=False), dict(learn_exponent=False)):
        new = nupes_reconstruct(layer, x, x, 3, n_steps=40, lr_codes=.1, lr_exponent=.05, generator=g, **learn)
        assert gap(layer, x, new.weight) <= start*(1 + 1e-9)
        assert new.codes.abs().max() <= 3 and new.a.isfinite() and .1 < new.a < 1.5
        if not learn.get("learn_exponent", True): assert_close(new.a, a)


def test_nothing_to_learn_is_rounding():
    layer, x = linear()
    new = nupes_reconstruct(layer, x, x, 3, learn_exponent=False, learn_codes=False, a=.6)
    codes, M = power_quantize(layer.weight, .6, 3, dim=0)
    assert torch.equal(new.codes.int(), codes) and torch.equal(new.scale, M)


def test_a_layer_without_shell_is_a_matrix():
    codes, M = power_quantize(normal(3, 7), .5, 9, dim=0)
    new = QuantizedLayer(codes, M, .5, 9)
    x = normal(4, 7, seed=1)
    assert new.codes.dtype == torch.int16
    assert_close(new(x), x @ power_dequantize(codes, M, .5, 9).mT)
    again = QuantizedLayer(torch.zeros_like(codes), M, 1., 9)
    again.load_state_dict(new.state_dict())
    assert torch.equal(again.weight, new.weight)


def test_soft_round_stays_between_and_is_odd_about_halves():
    u = 5*normal(500)
    for tau in (.02, .2, 2.):
        y = soft_round(u, tau)
        assert (y >= u.floor() - 1e-12).all() and (y <= u.ceil() + 1e-12).all()
        assert_close(soft_round(-u, tau), -y, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["rtn", "power", "adaround", "nupes"])
def test_model_is_left_alone(method):
    net = nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(12, 3)).double()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    new = reconstruct_model(net, normal(20, 1, 6), 4, method, 10, generator=torch.Generator().manual_seed(0))
    assert net.training and new.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [type(m) for m in (new[0], new[4])] == [QuantizedLayer]*2
    assert_close(new.eval()(normal(5, 1, 6)).shape, torch.Size([5, 3]))


@pytest.mark.parametrize("method", ["adaround", "nupes"])
def test_no_tensor_is_left_on_a_default_device(method):
    layer, x = linear()
    net = nn.Sequential(layer)
    with torch.device("meta"): new = reconstruct_model(net, x, 3, method, 5)
    assert {t.device.type for t in [*new.parameters(), *new.buffers()]} == {"cpu"}


def test_refusals():
    layer, x = linear()
    with pytest.raises(ValueError, match="gptq"): reconstruct_model(nn.Sequential(layer), x, 3, "gptq")
    with pytest.raises(ValueError, match="ReLU"): reconstruct_model(nn.ReLU(), x, 3)
    with pytest.raises(ValueError, match="rows"): nupes_reconstruct(layer, x, x[:3], 3)
    with pytest.raises(ValueError, match="tau"): soft_round(x, -1.)
