"Pairs that cancel: the table pair by pair, on decoders of several shapes."
import copy

import pytest
import torch
from draws import normal
from torch.func import functional_call
from torch.testing import assert_close

import kullback.quantize
import kullback.quantize.rotate
from kullback.divergence import kl_top
from kullback.language import DecoderConfig, DecoderLM
from kullback.optim import StiefelAdam
from kullback.quantize import OSTransform, quantized_activations, random_orthogonal, smooth_scales

SHAPES = [dict(n_gqa_groups=1), dict(n_gqa_groups=4), dict(n_gqa_groups=2, tied=False), dict(n_gqa_groups=2, qk_norm=True)]


def decoder(**shape):
    shape = dict(vocab=19, n_layers=2, model_dim=16, head_dim=4, qkv_multipliers=1., ffn_multipliers=(1., 2.), ffn_divisor=8,
                 qk_norm=False) | shape
    model = DecoderLM(DecoderConfig(**shape)).double()
    for i, p in enumerate(model.parameters()):
        p.data = normal(*p.shape, seed=i)*.3 if p.ndim > 1 else normal(*p.shape, seed=i).mul(.3).exp()
    return model


def turn_(t, seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        t.turn.copy_(random_orthogonal(len(t.turn), g))
        for U in t.heads: U.copy_(torch.stack([random_orthogonal(U.shape[-1], g) for _ in U]))
    return t


def stretch_(t, only=None):
    with torch.no_grad():
        for layer in t.scales:
            for i, (name, s) in enumerate(layer.items()):
                if only in (None, name): s.copy_(.5*normal(*s.shape, seed=i))
    return t


IDS = torch.randint(19, (2, 6), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("online", [False, True])
def test_the_function_stays(shape, online):
    model = decoder(**shape)
    t = stretch_(turn_(OSTransform(model.config, online=online).double()))
    w = t.apply(model.state_dict())
    plain = DecoderLM(t.spec).double()
    plain.load_state_dict(w)
    with quantized_activations(plain, online=online): assert_close(plain(IDS), model(IDS), rtol=0, atol=1e-9)
    if online: assert (plain(IDS) - model(IDS)).abs().max() > 1e-2


@pytest.mark.parametrize("pair", ["qkv", "upgate", "ov", "updown", "qk"])
def test_each_stretch_alone(pair):
    "It moves the weights it names, and the function not at all; untied, the pair before RoPE does."
    model = decoder(n_gqa_groups=2)
    t = stretch_(OSTransform(model, "identity").double(), pair)
    w, before = t.apply(model.state_dict()), stretch_(OSTransform(model, "identity").double(), "none").apply(model.state_dict())
    moved = {n.split(".", 2)[2] for n in w if n.startswith("layers.0") and not torch.equal(w[n], before[n])}
    names = {"qkv": {"attn_norm", "attn.q_proj", "attn.k_proj", "attn.v_proj"}, "upgate": {"ffn_norm", "ffn.gate_proj", "ffn.up_proj"},
             "ov": {"attn.v_proj", "attn.o_proj"}, "updown": {"ffn.up_proj", "ffn.down_proj"}, "qk": {"attn.q_proj", "attn.k_proj"}}
    assert moved == {f"{n}.weight" for n in names[pair]}
    plain = DecoderLM(t.spec).double()
    assert_close(functional_call(plain, w, (IDS,)), model(IDS), rtol=0, atol=1e-9)
    loose = stretch_(OSTransform(model, "identity", tied_qk=False).double(), pair).apply(model.state_dict())
    gap = (functional_call(plain, loose, (IDS,)) - model(IDS)).abs().max()
    assert gap > 1e-3 if pair == "qk" else gap < 1e-9


def test_identity_without_scales_only_folds_gains():
    model = decoder(n_gqa_groups=2)
    w = OSTransform(model, "identity").double().apply(model.state_dict())
    assert_close(w["layers.1.attn.o_proj.weight"], model.layers[1].attn.o_proj.weight)
    assert_close(w["layers.1.ffn.up_proj.weight"], model.layers[1].ffn.up_proj.weight*model.layers[1].ffn_norm.weight)
    assert_close(w["head.weight"], model.embed.weight*model.norm.weight)


@pytest.mark.parametrize("retraction", ["qr", "cayley"])
def test_turns_stay_turns_while_they_learn(retraction):
    model = decoder(n_gqa_groups=2)
    weights, logits = dict(model.state_dict()), model(IDS).detach()
    t = OSTransform(model, "klt").double()
    plain = DecoderLM(t.spec).double()
    optimizer = StiefelAdam([dict(params=t.rotations(), lr=.1), dict(params=t.log_scales(), lr=.02)], .1, retraction=retraction)
    first = copy.deepcopy(t.state_dict())
    for _ in range(50):
        with quantized_activations(plain, 3, 3): out = functional_call(plain, t.apply(weights), (IDS,))
        kl_top(out, logits, 5).backward()
        optimizer.step()
        optimizer.zero_grad()
    for U in t.rotations(): assert_close(U.mT @ U, torch.eye(U.shape[-1]).double().expand_as(U), rtol=0, atol=1e-10)
    assert min((p - first[n]).abs().max() for n, p in t.state_dict().items()) > 1e-3
    assert_close(functional_call(plain, t.apply(weights), (IDS,)), logits, rtol=0, atol=1e-9)


def test_single_precision_turns_keep_their_columns():
    model = decoder(n_gqa_groups=2).float()
    t = OSTransform(model, generator=torch.Generator().manual_seed(0))
    optimizer = StiefelAdam([dict(params=t.rotations(), lr=.05)], .05)
    plain = DecoderLM(t.spec)
    for _ in range(50):
        with quantized_activations(plain, 3, 3): out = functional_call(plain, t.apply(dict(model.state_dict())), (IDS,))
        kl_top(out, model(IDS), 5).backward()
        optimizer.step()
    for U in t.rotations(): assert_close(U.mT @ U, torch.eye(U.shape[-1]).expand_as(U), rtol=0, atol=1e-5)


def test_fused_twice():
    model = decoder(n_gqa_groups=2)
    logits = model(IDS).detach()
    for seed in range(2):
        assert stretch_(turn_(OSTransform(model).double(), seed)).fuse_() is model
        assert_close(model(IDS), logits, rtol=0, atol=1e-9)
    assert not model.config.tied and model.head_weight is model.head.weight


def test_the_model_is_no_part_of_the_transform():
    model = decoder(n_gqa_groups=2)
    t = OSTransform(model)
    assert not {id(p) for p in t.parameters()} & {id(p) for p in model.parameters()}
    assert len(list(t.parameters())) == len(t.rotations()) + len(t.log_scales())
    with pytest.raises(ValueError, match="svd"): OSTransform(model, "svd")
    with pytest.raises(ValueError, match="need a DecoderLM"): OSTransform(model.config).fuse_()


def test_smoothing_moves_range():
    a, w = normal(9).abs(), normal(9, seed=1).abs()
    s = smooth_scales(a, w, .7)
    assert_close(a/s*(w*s), a*w)
    assert_close(s.log(), .7*a.log() - .3*w.log())


def test_turns_are_found_where_the_contract_has_them():
    for name in ("hadamard", "klt_hadamard", "log_qsur", "log_qsur_from_samples", "optimal_rotation", "random_hadamard",
                 "random_orthogonal", "smooth_scales", "OSTransform"):
        assert getattr(kullback.quantize.rotate, name) is getattr(kullback.quantize, name)
