"One contract for every tracer: causal, blind to padding, equivariant, savable; and against other routes."
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from kullback.trace import BKT, CAKT, DKT, DKVMN, SAKT, influence, next_step_loss

B, T, K = 4, 9, 5
TRACERS = {"bkt": BKT, "dkt": partial(DKT, dim=6), "dkvmn": partial(DKVMN, dim=6, memory_size=3),
           "sakt": partial(SAKT, dim=6, max_len=12, heads=2), "sakt2": partial(SAKT, dim=6, max_len=12, heads=3, blocks=2),
           **{f"cakt-{a}": partial(CAKT, side=3, frames=3, align=a) for a in ("next", "current", "recent")}}
EXACT = dict(rtol=0, atol=1e-12)


def drawn(name, seed=0):
    g = torch.Generator().manual_seed(seed)
    net = TRACERS[name](K).double().eval()
    with torch.no_grad():
        for p in net.parameters(): p.copy_(.5*torch.randn(p.shape, generator=g, dtype=torch.float64))
    return net


def batch(seed=1):
    g = torch.Generator().manual_seed(seed)
    c, r = torch.randint(K, (B, T + 1), generator=g), torch.randint(2, (B, T + 1), generator=g)
    return c[:, :-1], r[:, :-1], c[:, 1:], torch.arange(T) < torch.tensor([[T], [6], [3], [1]])


@pytest.mark.parametrize("name", TRACERS)
def test_future_answers_are_not_heard(name):
    net, (c, r, q, _) = drawn(name), batch()
    z = net(c, r, q)
    for t in range(T - 1):
        other_c, other_r = c.clone(), r.clone()
        other_c[:, t + 1:], other_r[:, t + 1:] = (c[:, t + 1:] + 1) % K, 1 - r[:, t + 1:]
        assert_close(net(other_c, other_r, q)[:, :t + 1], z[:, :t + 1], **EXACT)
        later = q.clone()
        later[:, t + 1:] = (q[:, t + 1:] + 1) % K
        assert_close(net(c, r, later)[:, :t + 1], z[:, :t + 1], **EXACT)
    flipped = r.clone()
    flipped[:, 2] = 1 - r[:, 2]
    if name != "bkt": assert ((net(c, flipped, q) - z)[:, 2:].abs().amax(0) > 1e-9).all()
    assert ((net(c, r, (q + 1) % K) - z).abs() > 1e-9).all()


@pytest.mark.parametrize("name, emb", [("dkt", "interaction_emb"), ("dkvmn", "v_emb_layer"), ("sakt", "interaction_emb"), ("sakt2", "interaction_emb"),
                                       ("cakt-next", "interaction_emb"), ("cakt-current", "interaction_emb"), ("cakt-recent", "interaction_emb")])
def test_jacobian_is_lower_triangular_and_full(name, emb):
    net, (c, r, q, _) = drawn(name), batch()
    reach = influence(net, getattr(net, emb), c, r, q)
    assert torch.equal(reach > 0, torch.ones(T, T, dtype=torch.bool).tril())
    assert not getattr(net, emb)._forward_hooks


@pytest.mark.parametrize("name", TRACERS)
@pytest.mark.parametrize("train", [False, True])
def test_padding_is_not_heard(name, train):
    net, (c, r, q, m) = drawn(name).train(train), batch()
    wide = lambda x, fill: torch.cat([x.masked_fill(~m, fill), torch.full((B, 3), fill)], 1)
    z = net(c, r, q, m)
    assert_close(net(wide(c, -1), wide(r, 7), wide(q, 99), wide(m, False))[:, :T][m], z[m], **EXACT)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(net(c[order], r[order], q[order], m[order])[m[order]], z[order][m[order]], **EXACT)


@pytest.mark.parametrize("name", TRACERS)
def test_every_parameter_learns_and_state_round_trips(name):
    net, (c, r, q, m) = drawn(name), batch()
    next_step_loss(net(c, r, q, m), 1 - r, m).backward()
    silent = {n for n, p in net.named_parameters() if p.grad is None or (p.grad == 0).all()}
    assert name.startswith("cakt") or silent == set()        # there ReLUs may be shut by chance
    twin = TRACERS[name](K).double().eval()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(c, r, q, m), net(c, r, q, m))
    for bad in (c - 1, c + K):
        with pytest.raises(ValueError, match="concepts must lie in 0..4"): net(bad, r, q)
    with pytest.raises(ValueError, match="responses must be 0 or 1, got 2"): net(c, r + 1, q)
    with pytest.raises(ValueError, match="shapes differ"): net(c, r[:, :-1], q)


def test_names_of_pykt():
    "state_dict of pykt-toolkit 0.0.38, written down from its models."
    linear = lambda *names: {f"{n}.{w}" for n in names for w in ("weight", "bias")}
    assert set(DKT(K, 6).state_dict()) == {"interaction_emb.weight", *linear("out_layer"),
                                          *(f"lstm_layer.{w}_{s}_l0" for w in ("weight", "bias") for s in ("ih", "hh"))}
    assert set(DKVMN(K, 6, 3).state_dict()) == {"Mk", "Mv0", "k_emb_layer.weight", "v_emb_layer.weight",
                                               *linear("e_layer", "a_layer", "f_layer", "p_layer")}
    block = linear("attn_layer_norm", "FFN_layer_norm", "FFN.FFN.0", "FFN.FFN.3", "attn.out_proj") | {"attn.in_proj_weight", "attn.in_proj_bias"}
    assert set(SAKT(K, 6, 12, 2).state_dict()) == {"interaction_emb.weight", "exercise_emb.weight", "position_emb.weight",
                                                  *linear("pred"), *(f"blocks.0.{n}" for n in block)}


def test_sakt_against_pytorchs_own_layer():
    "One head, no feed-forward: scaled_dot_product_attention with is_causal."
    net, (c, r, q, _) = drawn("sakt"), batch()
    block = net.blocks[0]
    with torch.no_grad(): block.FFN["FFN"][3].weight.zero_(); block.FFN["FFN"][3].bias.zero_()
    x = net.interaction_emb(c + K*r) + net.position_emb(torch.arange(T))
    query = net.exercise_emb(q)
    W, b = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
    heads = lambda i, y: (y@W[i].T + b[i]).view(B, T, 2, 3).transpose(1, 2)
    a = nn.functional.scaled_dot_product_attention(heads(0, query), heads(1, x), heads(2, x), is_causal=True)
    y = block.attn_layer_norm(query + block.attn.out_proj(a.transpose(1, 2).flatten(2)))
    assert_close(net(c, r, q), net.pred(block.FFN_layer_norm(y)).squeeze(-1), rtol=0, atol=1e-10)


def test_dropout_only_in_training():
    c, r, q, _ = batch()
    for net in (DKT(K, 6, dropout=.5), DKVMN(K, 6, 3, dropout=.5), SAKT(K, 6, 12, 2, dropout=.5)):
        assert not torch.equal(net(c, r, q), net(c, r, q))
        net.eval()
        assert torch.equal(net(c, r, q), net(c, r, q))
