"""`language.decoder`: facts that the page would be bored by.

Oracles: transformers' LLaMA and Qwen3 (RMSNorm on every query and key head before the rotation, as OpenELM), with our
weights. Both round norms and angles to float32 whatever the dtype; for float64 they get PyTorch's RMSNorm and angles of
their own precision, so that what is compared is the wiring. OpenELM itself is remote code: layers of unequal width are
Qwen3 layers of unequal configurations.
"""
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.testing import assert_close

from kullback.language import (
    GRULM,
    DecoderConfig,
    DecoderLayer,
    DecoderLM,
    GQAttention,
    LayerDims,
    RMSNorm,
    SwiGLU,
    count_parameters,
    decoder_parameters,
    layerwise_dims,
    logit_z_penalty,
    make_divisible,
    rope,
)

EXACT = dict(rtol=0, atol=1e-12)
SMALL = dict(vocab=23, n_layers=3, model_dim=16, head_dim=4, n_gqa_groups=2, ffn_divisor=4, context=40)


def decoder(seed=0, **changes):
    torch.manual_seed(seed)
    lm = DecoderLM(DecoderConfig(**{**SMALL, **changes})).double()
    for p in lm.parameters():
        if p.ndim == 1: p.data.uniform_(.5, 1.5)                   # gains that are not 1
    return lm, torch.randint(SMALL["vocab"], (3, 9))


# other implementations

class ExactRotary(nn.Module):
    "Angles in the dtype of x, where transformers has float32."
    def __init__(self, base, dim):
        super().__init__()
        self.base, self.dim = base, dim

    def forward(self, x, position_ids):
        angle = position_ids[..., None].to(x.dtype)*self.base**(-torch.arange(0, self.dim, 2, dtype=x.dtype)/self.dim)
        return angle.cos().repeat(1, 1, 2), angle.sin().repeat(1, 1, 2)


NAMES = {"embed.": "model.embed_tokens.", "layers.": "model.layers.", "norm.": "model.norm.", "head.": "lm_head.",
         ".attn_norm.": ".input_layernorm.", ".ffn_norm.": ".post_attention_layernorm.", ".attn.": ".self_attn.", ".ffn.": ".mlp."}


def renamed(name):
    for ours, theirs in NAMES.items():
        if (name.startswith(ours) if ours[0] != "." else ours in name): name = name.replace(ours, theirs, 1)
    return name


def peer(lm, exact=True):
    "The same model out of transformers' parts."
    transformers = pytest.importorskip("transformers")
    from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
    c, dims = lm.config, lm.config.layer_dims
    kind = "Qwen3" if c.qk_norm else "Llama"

    def config(i):
        return getattr(transformers, f"{kind}Config")(
            vocab_size=c.vocab, hidden_size=c.model_dim, num_hidden_layers=c.n_layers, head_dim=c.head_dim,
            num_attention_heads=dims.q_heads[i], num_key_value_heads=dims.kv_heads[i], intermediate_size=dims.ffn_dims[i],
            max_position_embeddings=c.context, rms_norm_eps=1e-6, tie_word_embeddings=c.tied, attn_implementation="sdpa",
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_base}, attention_bias=False,
            bos_token_id=None, eos_token_id=None, pad_token_id=None)
    other = getattr(transformers, f"{kind}ForCausalLM")(config(0))
    if len({*zip(*dims)}) > 1: other.model.layers = nn.ModuleList(Qwen3DecoderLayer(config(i), i) for i in range(c.n_layers))
    other = other.double() if exact else other
    if exact:
        for parent in list(other.modules()):
            for name, m in parent.named_children():
                if type(m).__name__.endswith("RMSNorm"): setattr(parent, name, nn.RMSNorm(len(m.weight), eps=1e-6).double())
        other.model.rotary_emb = ExactRotary(c.rope_base, c.head_dim)
    missing, unexpected = other.load_state_dict({renamed(k): v for k, v in lm.state_dict().items()}, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if c.tied else set())
    return other.eval()


LLAMA = dict(qk_norm=False, qkv_multipliers=1., ffn_multipliers=2.)
PEERS = {"llama": LLAMA, "llama, one key a query": {**LLAMA, "n_gqa_groups": 1}, "llama, head of its own": {**LLAMA, "tied": False},
         "llama, another base": {**LLAMA, "rope_base": 500.}, "norms on queries and keys": dict(qkv_multipliers=1., ffn_multipliers=2.),
         "widths by layer": dict(qkv_multipliers=(.5, 1.)), "widths against the depth": dict(qkv_multipliers=(1., .5), tied=False)}


@pytest.mark.parametrize("changes", PEERS.values(), ids=PEERS)
def test_logits_and_gradients_against_transformers(changes):
    lm, ids = decoder(**changes)
    other = peer(lm)
    weights = torch.randn(3, 9, SMALL["vocab"], dtype=torch.float64)
    logits, theirs = lm(ids), other(ids).logits
    assert_close(logits, theirs, rtol=0, atol=1e-10)
    for z in (logits, theirs): (z*weights).sum().backward()
    their_grads = {n: p.grad for n, p in other.named_parameters()}
    for n, p in lm.named_parameters(): assert_close(p.grad, their_grads[renamed(n)], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["llama", "widths by layer"])
def test_cached_generation_against_transformers(name):
    lm, ids = decoder(**PEERS[name])
    other = peer(lm)
    mine = lm.generate(ids, 20, temperature=0)
    assert torch.equal(mine, other.generate(ids, max_new_tokens=20, do_sample=False, attention_mask=torch.ones_like(ids)))
    with torch.no_grad():
        whole, theirs, state = lm(mine), other(mine).logits, None
        for t, token in enumerate(mine.unbind(1)):
            logits, state = lm.step(token, state)
            assert_close(logits, theirs[:, t], rtol=0, atol=1e-10)
            assert_close(logits, whole[:, t], **EXACT)


@pytest.mark.parametrize("name", ["llama", "norms on queries and keys"])
def test_float32_as_transformers_has_it(name):
    "No part replaced: the same up to float32."
    lm, ids = decoder(**PEERS[name])
    assert_close(lm.float()(ids), peer(lm.float(), exact=False)(ids).logits, rtol=1e-4, atol=1e-4)


def test_layer_states_against_transformers():
    lm, ids = decoder()
    *states, last = peer(lm)(ids, output_hidden_states=True).hidden_states
    for a, b in zip(lm.layer_states(ids), states): assert_close(a, b, rtol=0, atol=1e-10)
    assert_close(lm.hidden_states(ids), last, rtol=0, atol=1e-10)


# published widths: num_query_heads and ffn_multipliers in config.json of apple/OpenELM-*, FFN widths as its code makes them
PUBLISHED = json.loads("""{
 "270M": [[16, 1280, 64], [12,12,12,12,12,16,16,16,16,16,16,16,20,20,20,20],
          [0.5,0.73,0.97,1.2,1.43,1.67,1.9,2.13,2.37,2.6,2.83,3.07,3.3,3.53,3.77,4.0]],
 "1.1B": [[28, 2048, 64], [16,16,16,20,20,20,20,20,20,20,24,24,24,24,24,24,24,24,28,28,28,28,28,28,32,32,32,32],
          [0.5,0.63,0.76,0.89,1.02,1.15,1.28,1.41,1.54,1.67,1.8,1.93,2.06,2.19,2.31,2.44,2.57,2.7,2.83,2.96,
           3.09,3.22,3.35,3.48,3.61,3.74,3.87,4.0]]}""")


@pytest.mark.parametrize("size, heads, betas", PUBLISHED.values(), ids=PUBLISHED)
def test_published_widths(size, heads, betas):
    dims = layerwise_dims(*size)
    assert dims.q_heads == heads and dims.kv_heads == [h//4 for h in heads]
    assert dims.ffn_dims == [int(b*size[1]/256 + .5)*256 for b in betas]             # 2.5 goes up


def test_published_widths_450m():
    "num_query_heads and FFN widths of apple/OpenELM-450M."
    dims = layerwise_dims(20, 1536, 64)
    assert dims.q_heads == [12]*3 + [16]*7 + [20]*6 + [24]*4
    assert dims.ffn_dims[:16] == [768, 1024, 1280, 1536, 1792, 2304, 2560, 2816, 3072, 3328, 3584, 3840, 4096, 4352, 4608, 5120]


@pytest.mark.parametrize("v", [1, 7, 100, 115.2, 127.9, 128, 383, 600, 640, 700, 1234.5])
@pytest.mark.parametrize("divisor", [1, 16, 256])
def test_make_divisible(v, divisor):
    new = make_divisible(v, divisor)
    assert new % divisor == 0 and new >= .9*v and new >= divisor and new - v <= max(divisor, .1*v + divisor/2)
    assert make_divisible(v, divisor, 512) >= 512


@pytest.mark.parametrize("changes", [{}, dict(tied=False), dict(qk_norm=False), dict(qkv_multipliers=.5, ffn_multipliers=(4., .5)),
                                     dict(dims=LayerDims([2, 6, 4], [1, 3, 2], [5, 7, 9]))])
def test_closed_form_counts_the_model(changes):
    c = DecoderConfig(**{**SMALL, **changes})
    parts = decoder_parameters(c.layer_dims, c.model_dim, c.head_dim, c.vocab, c.tied, c.qk_norm)
    lm = DecoderLM(c)
    assert count_parameters(lm, embeddings=False) == parts["total"] - c.vocab*c.model_dim
    assert parts["total"] == count_parameters(lm) == sum(p.numel() for p in lm.parameters())
    assert parts["attn"] == sum(p.numel() for n, p in lm.named_parameters() if ".attn." in n and "proj" in n)
    assert parts["ffn"] == sum(p.numel() for n, p in lm.named_parameters() if ".ffn." in n)
    assert parts["norm"] == sum(p.numel() for p in lm.parameters() if p.ndim == 1)


def test_schedules_of_one_sum_have_one_count():
    up, down = layerwise_dims(8, 128, 16, n_gqa_groups=2, ffn_divisor=16), layerwise_dims(8, 128, 16, (1., .5), (4., .5), 2, 16)
    a, b = (decoder_parameters(d, 128, 16, 0) for d in (up, down))
    assert a == b and up.q_heads == [4, 6, 6, 6, 6, 8, 8, 8] and a["attn"] + a["ffn"] == 1_204_224


# pieces

@pytest.mark.parametrize("shift", [1, 5, 100])
def test_rope_sees_distances_only(shift):
    q, k = torch.randn(2, 1, 2, 1, 8, dtype=torch.float64)
    far = [rope(q.expand(1, 2, 120, 8), k.expand(1, 2, 120, 8))[i] for i in (0, 1)]
    for m, n in [(0, 3), (7, 2), (10, 10)]:
        here, there = ((far[0][..., m + s, :]*far[1][..., n + s, :]).sum(-1) for s in (0, shift))
        assert_close(here, there, rtol=0, atol=1e-11)


def test_norm_gradient_is_finite_difference_and_half_precision_is_float32_inside():
    x, norm = torch.randn(4, 6, dtype=torch.float64, requires_grad=True), RMSNorm(6).double()
    norm.weight.data.uniform_(.5, 2)
    assert torch.autograd.gradcheck(norm, x)
    big = torch.full((1, 6), 300.)                                 # its square overflows in float16
    assert_close(RMSNorm(6).half()(big.half()), torch.ones(1, 6).half())


def test_attention_against_pytorchs_grouped_attention():
    torch.manual_seed(0)
    x, att = torch.randn(2, 7, 12, dtype=torch.float64), GQAttention(12, 6, 3, 4, qk_norm=False).double()
    q, k, v = (f(x).view(2, 7, -1, 4).transpose(1, 2) for f in (att.q_proj, att.k_proj, att.v_proj))
    out = F.scaled_dot_product_attention(*rope(q, k), v, is_causal=True, enable_gqa=True)
    assert_close(att(x), att.o_proj(out.transpose(1, 2).flatten(2)), **EXACT)


@pytest.mark.parametrize("pieces", [(9,), (1,)*9, (4, 5), (1, 7, 1), (3, 3, 3)])
def test_reading_in_pieces_is_reading(pieces):
    "And the gradient goes through the cache as through the whole text."
    lm, ids = decoder()
    weights, state, parts = torch.randn(3, 9, 16, dtype=torch.float64), None, []
    whole = torch.autograd.grad((lm.hidden_states(ids)*weights).sum(), [*lm.parameters()])
    for piece in ids.split(pieces, 1):
        hidden, state = lm.read(piece, state)
        parts.append(hidden)
    for a, b in zip(torch.autograd.grad((torch.cat(parts, 1)*weights).sum(), [*lm.parameters()]), whole): assert_close(a, b, **EXACT)


def test_reading_on_leaves_the_old_state_alone():
    "Two continuations of one prompt share its state."
    lm, ids = decoder()
    _, state = lm.read(ids[:, :5])
    kept = [t.clone() for kv in state for t in kv]
    for tail in (ids[:, 5:], ids[:, 5:].flip(1)):
        assert_close(lm.step(tail, state)[0], lm(torch.cat([ids[:, :5], tail], 1))[:, -1], **EXACT)
    assert all(torch.equal(a, b) for a, b in zip(kept, (t for kv in state for t in kv)))


@pytest.mark.parametrize("build", [decoder, lambda: gru(23)])
def test_later_tokens_change_nothing_bitwise(build):
    lm, ids = build()
    for t in range(1, ids.shape[1]):
        other = ids.clone()
        other[:, t] = (ids[:, t] + 1) % 23
        assert torch.equal(lm(ids)[:, :t], lm(other)[:, :t])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_one_example_at_a_time_under_vmap():
    "Fisher information asks for them."
    lm, ids = decoder()
    params = {n: p.detach() for n, p in lm.named_parameters()}
    def loss(p, row): return F.cross_entropy(functional_call(lm, p, (row[None],))[0, :-1], row[1:])
    stacked = vmap(grad(loss), (None, 0))(params, ids)
    for i, row in enumerate(ids):
        lm.zero_grad()
        F.cross_entropy(lm(row[None])[0, :-1], row[1:]).backward()
        for n, p in lm.named_parameters(): assert_close(stacked[n][i], p.grad, **EXACT)


def test_hooks_find_the_input_of_the_last_ffn():
    lm, ids = decoder()
    seen = []
    handle = lm.layers[-1].ffn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    hidden = lm.layer_states(ids)
    handle.remove()
    last = lm.layers[-1]
    stream = hidden[-2] + last.attn(last.attn_norm(hidden[-2]))
    assert_close(seen[0], last.ffn_norm(stream), **EXACT)
    assert_close(hidden[-1], stream + last.ffn(seen[0]), **EXACT)


def test_generation_draws_from_the_model():
    "Two tokens after one prompt: frequencies against exact probabilities, and the dice decide."
    lm, ids = decoder(vocab=4)
    prompt = (ids[:1, :3] % 4).expand(10_000, 3)
    drawn = lm.float().generate(prompt, 2, temperature=.7, generator=torch.Generator().manual_seed(0))
    texts = torch.cat([prompt[:16], torch.cartesian_prod(torch.arange(4), torch.arange(4))], 1)
    logp = (lm(texts)[:, 2:-1]/.7).log_softmax(-1).gather(-1, texts[:, 3:, None]).sum((1, 2))
    seen = (drawn[:, 3]*4 + drawn[:, 4]).bincount(minlength=16)/10_000
    z = (seen - logp.exp())/(logp.exp()*(1 - logp.exp())/10_000).sqrt()
    assert z.abs().max() < 4.5
    assert torch.equal(drawn, lm.generate(prompt, 2, temperature=.7, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("build", [decoder, lambda: gru(23)])
def test_generation_makes_nothing_on_the_default_device(build):
    lm, ids = build()
    g = torch.Generator().manual_seed(0)
    with torch.device("meta"): drawn = lm.generate(ids, 4, .9, .8, g)
    assert drawn.device.type == "cpu" and torch.equal(drawn, lm.generate(ids, 4, .9, .8, g.manual_seed(0)))


def test_cold_and_narrow_sampling_are_greedy():
    lm, ids = decoder()
    greedy = lm.generate(ids, 8, temperature=0)
    assert torch.equal(greedy, lm.generate(ids, 8, temperature=1e-6)) and torch.equal(greedy, lm.generate(ids, 8, top_p=1e-9))
    assert torch.equal(greedy[:, :9], ids) and greedy.shape == (3, 17)


def test_autocast_runs_in_bfloat16():
    lm, ids = decoder()
    lm = lm.float()
    with torch.autocast("cpu", dtype=torch.bfloat16): rough = lm(ids)
    assert rough.dtype == torch.bfloat16
    assert_close(rough.float(), lm(ids), rtol=.1, atol=.1)
    assert lm.bfloat16()(ids).dtype == torch.bfloat16


def test_z_penalty_gradient_and_padding():
    z = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: logit_z_penalty(x, weight=2.), z)
    mask = torch.ones(2, 3, dtype=torch.bool)
    padded = torch.cat([z, torch.full((2, 4, 5), float("inf"))], 1), torch.cat([mask, torch.zeros(2, 4, dtype=torch.bool)], 1)
    assert_close(logit_z_penalty(*padded), 1e-4*z.logsumexp(-1).square().mean(), **EXACT)
    logit_z_penalty(*padded).backward()
    assert_close(z.grad, 2e-4/6*z.logsumexp(-1, keepdim=True)*z.softmax(-1), **EXACT)


BAD = {
    "(3,)": lambda: decoder()[0](torch.zeros(3).long()), "float32": lambda: decoder()[0](torch.zeros(1, 3)),
    "got -1": lambda: decoder()[0](torch.tensor([[0, -1]])), "got 23": lambda: decoder()[0](torch.tensor([[23]])),
    "got 41": lambda: decoder()[0](torch.zeros(1, 41).long()), "got 9 + 32": lambda: decoder()[0].generate(decoder()[1], 32),
    "max_new must be positive, got 0": lambda: decoder()[0].generate(decoder()[1], 0),
    "(0, 1], got 1.5": lambda: decoder()[0].generate(decoder()[1], 2, top_p=1.5),
    "vocab must be positive, got 0": lambda: DecoderConfig(0, 2, 16, 4), "got -5": lambda: DecoderConfig(9, 2, 16, 4, context=-5),
    "rope_base must be positive, got 0": lambda: DecoderConfig(9, 2, 16, 4, rope_base=0),
    "got 18 and 4": lambda: DecoderConfig(9, 2, 18, 4), "got (1, 2, 3)": lambda: DecoderConfig(9, 2, 16, 4, (1, 2, 3)),
    "n_gqa_groups must be positive, got 0": lambda: DecoderConfig(9, 2, 16, 4, n_gqa_groups=0),
    "3 queries cannot share 2 keys": lambda: GQAttention(8, 3, 2, 4), "even head dimension, got 3": lambda: GQAttention(8, 2, 2, 3),
    "base must be positive, got -1": lambda: rope(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), -1),
    "(1, 1, 3, 4)": lambda: rope(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 3, 4)),
    "last axis must be 4, got (2, 5)": lambda: RMSNorm(4)(torch.zeros(2, 5)), "eps must not be negative, got -1": lambda: RMSNorm(4, -1),
    "ffn_dim must be positive, got 0": lambda: SwiGLU(4, 0), "v must be positive, got 0": lambda: make_divisible(0, 4),
    "(2, 3)": lambda: logit_z_penalty(torch.zeros(2, 3)), "got -2": lambda: logit_z_penalty(torch.zeros(1, 1, 3), weight=-2),
    "mask must be bool": lambda: logit_z_penalty(torch.zeros(1, 1, 3), torch.ones(1, 1)),
    "emb must be positive, got -1": lambda: GRULM(3, emb=-1),
}


@pytest.mark.parametrize("said", BAD)
def test_refused_with_the_value(said):
    with pytest.raises(ValueError) as info: BAD[said]()
    assert said in str(info.value)


def test_a_layer_reads_alone_as_in_the_model():
    lm, ids = decoder()
    layer = DecoderLayer(16, *[d[1] for d in lm.config.layer_dims][:2], 4, lm.config.layer_dims.ffn_dims[1]).double()
    layer.load_state_dict(lm.layers[1].state_dict())
    states = lm.layer_states(ids)
    assert_close(layer(states[1]), states[2], **EXACT)


def test_weights_start_as_the_page_says():
    torch.manual_seed(0)
    lm = DecoderLM(DecoderConfig(2000, 3, 128, 16, 1., 4., 1, 16, tied=False))
    for n, p in lm.named_parameters():
        if p.ndim == 1: assert (p == 1).all()
        else:
            std = (6*128)**-.5 if n.endswith(("o_proj.weight", "down_proj.weight")) else p.shape[1]**-.5
            assert abs(p.std().item()/std - 1) < .02 and abs(p.mean().item()) < .02*std, n


# the GRU

def gru(V=9, seed=0):
    torch.manual_seed(seed)
    return GRULM(V, 4, 6).double(), torch.randint(V, (3, 5))


def test_gru_gradients_against_pytorch():
    lm, ids = gru()
    other = nn.GRU(4, 6, batch_first=True).double()
    other.load_state_dict({f"{k}_l0": v for k, v in lm.cell.state_dict().items()})
    weights = torch.randn(3, 5, 9, dtype=torch.float64)
    (lm(ids)*weights).sum().backward()
    mine = {k: p.grad.clone() for k, p in lm.cell.named_parameters()}
    lm.zero_grad()
    (lm.proj(other(lm.embed(ids))[0]) @ lm.embed.weight.T*weights).sum().backward()
    for k, gradient in mine.items(): assert_close(gradient, getattr(other, f"{k}_l0").grad, **EXACT)


def test_gru_models_stack_under_vmap():
    lms, ids = [gru(seed=s)[0] for s in range(3)], gru()[1]
    params, buffers = stack_module_state(lms)
    out = vmap(lambda p, b: functional_call(lms[0], (p, b), (ids,)))(params, buffers)
    for lm, logits in zip(lms, out): assert_close(logits, lm(ids), **EXACT)


def test_gru_state_can_be_reordered():
    "Rows are independent: a permuted state goes on as the permuted text."
    lm, ids = gru()
    _, state = lm.step(ids[:, 0])
    order = torch.tensor([2, 0, 1])
    assert_close(lm.step(ids[order, 1], state[order])[0], lm(ids[:, :2])[order, 1], **EXACT)


def test_count_of_a_shared_weight():
    a, b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    assert count_parameters(nn.Sequential(a, b)) == 18
    b.weight = a.weight
    assert count_parameters(nn.Sequential(a, b)) == 9


def test_the_decoder_offers_its_parts():
    "What a small LLaMA is made of can be had from the page that puts it together."
    from kullback.language import blocks, decoder, widths
    for module, names in [(blocks, ["GQAttention", "RMSNorm", "SwiGLU", "rope"]),
                          (widths, ["LayerDims", "count_parameters", "decoder_parameters", "layerwise_dims", "make_divisible"])]:
        assert all(getattr(decoder, name) is getattr(module, name) for name in names)
