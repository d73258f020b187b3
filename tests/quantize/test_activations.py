"Hooks come and go; grids a token."
import pytest
import torch
from torch.testing import assert_close

from kullback.language import DecoderConfig, DecoderLM
from kullback.quantize import fake_quantize, hadamard, quantized_activations


def decoder():
    torch.manual_seed(0)
    return DecoderLM(DecoderConfig(11, 2, 8, 4, n_gqa_groups=2, qkv_multipliers=1., ffn_divisor=8, qk_norm=False)).double()


IDS = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(0))


def test_nothing_asked_nothing_done():
    model = decoder()
    plain = model(IDS)
    with quantized_activations(model) as same:
        assert same is model
        assert torch.equal(model(IDS), plain)


def test_hooks_leave_with_the_block_and_with_an_error():
    model = decoder()
    plain = model(IDS)
    with quantized_activations(model, 2, 2, online=True): assert not torch.equal(model(IDS), plain)
    with pytest.raises(ZeroDivisionError), quantized_activations(model, 2, 2): _ = 1/0
    assert torch.equal(model(IDS), plain)
    assert not any(m._forward_pre_hooks or "_mix" in vars(m) for m in model.modules())


def test_what_layers_read_is_on_a_grid_of_16():
    "And what they wrote is what the grid gives."
    model, read = decoder(), {}
    with quantized_activations(model, 4):
        for name, m in model.named_modules():
            if isinstance(m, torch.nn.Linear): m.register_forward_pre_hook(lambda m, x, n=name: read.update({n: x[0]}))
        model(IDS)
    assert len(read) == 14
    for x in read.values():
        assert max(len(row.unique()) for row in x.reshape(-1, x.shape[-1])) <= 16
        assert_close(fake_quantize(x, 4, symmetric=False), x)


def test_a_group_of_values_per_head():
    "A value head that is large does not widen the grid of its neighbour."
    model = decoder()
    attn, v = model.layers[0].attn, torch.randn(1, 2, 5, 4).double()
    v[:, 0] *= 100
    with quantized_activations(model, kv_bits=4):
        out = attn._mix(torch.zeros(1, 4, 5, 4).double(), torch.zeros(1, 2, 5, 4).double(), v)
    assert_close(out[:, 2], fake_quantize(v[:, 1], 4, symmetric=False).cumsum(1)/torch.arange(1, 6).double()[:, None])


def test_twice_is_refused():
    model = decoder()
    with quantized_activations(model, 4), pytest.raises(ValueError, match="already"):
        with quantized_activations(model, 4): pass
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_down_reads_turned_and_then_rounded():
    model, seen = decoder(), []
    with quantized_activations(model, 4, online=True):
        ffn = model.layers[0].ffn
        ffn.down_proj.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
        h = torch.randn(3, 8).double()
        ffn(h)
    h = fake_quantize(h, 4, symmetric=False)
    raw = torch.nn.functional.silu(h @ ffn.gate_proj.weight.T)*(h @ ffn.up_proj.weight.T)
    assert_close(seen[0], fake_quantize(raw @ hadamard(raw.shape[-1]), 4, symmetric=False))
