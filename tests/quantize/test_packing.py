"Packed weights: NumPy's bits, what the methods gave, and every bit of a file flipped."
import math

import numpy as np
import pytest
import torch
from draws import normal
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback.quantize import (
    Packed,
    QuantizedLayer,
    depalettize,
    kmeans_1d,
    load_packed,
    pack_bits,
    pack_palette,
    pack_power,
    pack_uniform,
    palettize,
    power_fake_quantize,
    power_levels,
    power_quantize,
    rtn,
    save_packed,
    storage_row,
    unpack,
    unpack_bits,
    unpack_model,
)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 16), st.integers(0, 50), st.integers(0, 10**6))
def test_stream_is_numpys(bits, n, seed):
    codes = torch.randint(2**bits, (n,), generator=torch.Generator().manual_seed(seed))
    packed = pack_bits(codes, bits)
    assert packed.dtype == torch.uint8 and len(packed) == math.ceil(n*bits/8)
    flat = ((codes.numpy()[:, None] >> np.arange(bits)) & 1).astype(np.uint8).flatten()
    assert (np.packbits(flat, bitorder="little") == packed.numpy()).all()
    assert torch.equal(unpack_bits(packed, bits, n).long(), codes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [1, 2, 5, 8, 256])
def test_palettes_return(dtype, k):
    w = normal(24, 20).to(dtype)
    C = kmeans_1d(w.flatten(), k)[0]
    packed = pack_palette(w, C)
    assert torch.equal(unpack(packed), depalettize(*palettize(w, C))) and unpack(packed).dtype == dtype
    assert packed.bits == max(1, math.ceil(math.log2(k)))


@pytest.mark.parametrize("how", [{}, dict(symmetric=False), dict(group_size=5), dict(symmetric=False, group_size=4, mse=True),
                                 dict(granularity="per_tensor"), dict(granularity="per_tensor", symmetric=False)])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_grids_return(how, bits):
    w = normal(6, 20).float()
    assert torch.equal(unpack(pack_uniform(w, bits, **how)), rtn(w, bits, **how))


@pytest.mark.parametrize("dim", [None, 0, 1])
@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("a", [.37, 1.])
def test_power_grids_return(a, bits, dim):
    w, a = normal(6, 20).float(), torch.tensor(a)
    codes, scale = power_quantize(w, a, bits, dim=dim)
    packed = pack_power(codes, scale, a, bits)
    assert torch.equal(unpack(packed), power_fake_quantize(w, a, bits, dim=dim))
    assert torch.equal(unpack(packed), QuantizedLayer(codes, scale, a, bits).weight)
    assert packed.tensors["codes"].numel() == math.ceil(120*bits/8) and packed.tensors["a"].numel() == 1


def test_every_power_code():
    for bits in (2, 3, 9):
        n = 2**(bits - 1) - 1
        packed = pack_power(torch.arange(-n, n + 1), torch.tensor(1.5), .6, bits)
        assert torch.equal(unpack(packed), power_levels(torch.tensor(.6), bits, torch.tensor(1.5)))
        for wrong in (n + 1, -n - 1):
            with pytest.raises(ValueError, match="codes must lie in"): pack_power(torch.tensor([wrong]), torch.tensor(1.), .6, bits)
    with pytest.raises(ValueError, match="integers, got torch.float32"): pack_power(torch.ones(2), torch.tensor(1.), .6, 3)


def test_the_row_counts_what_is_stored():
    w, norm = normal(16, 64).bfloat16(), torch.ones(64)
    model = {"a": pack_palette(w, kmeans_1d(w.flatten(), 8)[0]), "b": pack_uniform(w, 4, False, group_size=32), "norm": norm}
    row = storage_row(model)
    assert (row["code_bits"], row["table_bits"], row["scale_bits"], row["plain_bits"]) == (1024*7, 8*16, 32*(16 + 4), 64*32)
    assert row["bits_per_weight"] == (1024*7 + 128 + 640)/2048
    assert row["bytes"] == sum(t.numel()*t.element_size() for p in (model["a"], model["b"]) for t in p.tensors.values()) + 256


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def test_file_returns_the_model(tmp_path):
    w = normal(6, 8).bfloat16()
    model = {"a": pack_palette(w, kmeans_1d(w.flatten(), 4)[0]), "b.weight": pack_uniform(w, 3, False, group_size=4),
             "pair": pack_palette(w, normal(5, 2)), "bent": pack_power(*power_quantize(w, .4, 3, dim=0), .4, 3), "norm": torch.ones(3)}
    save_packed(tmp_path/"m.safetensors", model)
    back = load_packed(tmp_path/"m.safetensors")
    assert same(unpack_model(model), unpack_model(back)) and back["b.weight"].group_size == 4
    assert storage_row(back) == storage_row(model)


def test_parts_may_be_shared(tmp_path):
    w, a, scale = normal(3, 4).float(), torch.tensor(.6), torch.tensor(2.)
    model = {k: pack_power(power_quantize(w, a, 3, scale)[0], scale, a, 3) for k in "uv"} | {"w": w, "same": w}
    save_packed(tmp_path/"m.safetensors", model)
    assert same(unpack_model(model), unpack_model(load_packed(tmp_path/"m.safetensors")))


def test_every_flipped_bit_and_every_cut(tmp_path):
    "Refused, or a bit that says nothing (a space of the header): never other contents."
    path, other = tmp_path/"m.safetensors", tmp_path/"n.safetensors"
    save_packed(path, {"a": pack_palette(normal(3, 4).float(), torch.tensor([-1., 0., 1.])), "n": torch.ones(2)})
    whole, good, silent = path.read_bytes(), unpack_model(load_packed(path)), 0
    for bit in range(0, 8*len(whole), 3):
        data = bytearray(whole)
        data[bit//8] ^= 1 << bit % 8
        other.write_bytes(bytes(data))
        try: found = load_packed(other)
        except ValueError: continue
        silent += 1
        assert same(unpack_model(found), good)
    assert silent <= 24
    for n in range(0, len(whole), 7):
        other.write_bytes(whole[:n])
        with pytest.raises(ValueError): load_packed(other)


def test_strangers_are_refused(tmp_path):
    from safetensors.torch import save_file
    save_file({"w": torch.ones(2)}, str(tmp_path/"w.safetensors"))
    with pytest.raises(ValueError, match="format must be 'kullback-packed-1', got None"): load_packed(tmp_path/"w.safetensors")
    torch.save({"w": torch.ones(2)}, tmp_path/"w.pt")
    with pytest.raises(ValueError, match="no whole safetensors file"): load_packed(tmp_path/"w.pt")
    with pytest.raises(ValueError, match="got 'x'"): unpack(Packed("x", (1,), 1, {}))
