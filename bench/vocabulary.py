"""DPO, TDPO2 and HyPO with a vocabulary of 32,000: from hidden states and the head, or through logits.

    python bench/vocabulary.py [--loss tdpo2 ...] [--method "hidden states" ...] [--part head step] [--rounds 5]

16 sequences of 128 tokens (8 chosen, 8 rejected), the first 32 a prompt; HyPO adds 8 × 2 answers of the policy's own.
Policy and frozen reference, width 512, float32, two threads; forward and backward. `head` starts from hidden states,
`step` from token ids (a `DecoderLM` of four layers with a tied head). Before anything is timed the methods are compared
in float64. Peak memory is above inputs, parameters and gradients, with every freed block handed back to the system.
"""
import argparse
from functools import partial

import torch
from _bench import compare, repeats
from torch.utils.checkpoint import checkpoint

from kullback.align import dpo_loss, hypo_loss, linear_preference_terms, linear_sequence_logps, tdpo_loss
from kullback.language import DecoderConfig, DecoderLM, sequence_logps, sequential_kl

PAIRS, LENGTH, PROMPT, WIDTH, VOCAB, CHUNK = 8, 128, 32, 512, 32000, 256


def hidden_states(h, W, h0, W0, labels, kl):
    if kl: return linear_preference_terms(h, W, h0, W0, labels)
    return linear_sequence_logps(h, W, labels), linear_sequence_logps(h0, W0, labels), None


def library(h, W, h0, W0, labels, kl):
    "The library's functions of logits."
    z0 = h0 @ W0.T
    ref = sequence_logps(z0, labels)
    if not kl: del z0
    z = h @ W.T
    return sequence_logps(z, labels), ref, sequential_kl(z, z0, labels) if kl else None


def rows(h, W, h0, W0, y, kl):
    "The formula one would write by hand, for aligned tokens, with as few tensors as autograd allows."
    q = (h0 @ W0.T).log_softmax(-1)
    ref = q.gather(-1, y[..., None])[..., 0]
    if not kl: del q
    p = (h @ W.T).log_softmax(-1)
    return p.gather(-1, y[..., None])[..., 0], ref, (q.exp()*(q - p)).sum(-1) if kl else torch.zeros_like(ref)


def by_hand(h, W, h0, W0, labels, kl, chunk=None):
    y = labels[:, 1:]
    mask, ids = y >= 0, y.clamp(0)
    flat = [h[:, :-1].flatten(0, 1), W, h0[:, :-1].flatten(0, 1), W0, ids.flatten()]
    if chunk is None: parts = rows(*flat, kl)
    else:                                                                 # each chunk's logits are made again in backward
        again = partial(checkpoint, rows, use_reentrant=False)
        cut = zip(flat[0].split(chunk), flat[2].split(chunk), flat[4].split(chunk))
        parts = [torch.cat(x) for x in zip(*[again(a, W, b, W0, c, kl) for a, b, c in cut])]
    return [torch.where(mask, x.view_as(mask), 0.).sum(-1) for x in parts]


METHODS = {"hidden states": hidden_states, "logits, by hand": by_hand, "logits, the library's": library,
           "logits, chunks recomputed": partial(by_hand, chunk=CHUNK)}


def loss_of(name, score, policy, ref, offline, online):
    "`policy(ids)` and `ref(ids)` give hidden states and a head; `score` gives log-probabilities and divergences."
    def see(batch, kl=False):
        with torch.no_grad(): held = ref(batch)
        return score(*policy(batch), *held, batch.masked_fill(torch.arange(LENGTH) < PROMPT, -100), kl)
    now, then, kl = see(offline, name == "tdpo2")
    if name == "dpo": return dpo_loss(*now.chunk(2), *then.chunk(2))[0]
    if name == "tdpo2": return tdpo_loss(*(now - then).chunk(2), *kl.chunk(2))[0]
    own, own_ref, _ = see(online)
    return hypo_loss(*(now - then).chunk(2), own.view(PAIRS, 2), own_ref.view(PAIRS, 2), .1, .1)[0]


def draw(part, vocab, width, dtype):
    "Policy, reference, two batches, and the tensors that gradients reach."
    g = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)
    batches = [torch.randint(vocab, (2*PAIRS, LENGTH), generator=g) for _ in range(2)]
    if part == "head":
        W = normal(vocab, width)*width**-.5
        W0, h = W + .1*normal(vocab, width)*width**-.5, [normal(2*PAIRS, LENGTH, width) for _ in range(2)]
        held = {id(b): (x + .1*normal(*x.shape), W0) for b, x in zip(batches, h)}
        leaves = [W.requires_grad_(), *(x.requires_grad_() for x in h)]
        given = {id(b): (x, W) for b, x in zip(batches, h)}
        return (lambda b: given[id(b)]), (lambda b: held[id(b)]), batches, leaves
    torch.manual_seed(0)
    policy, ref = (DecoderLM(DecoderConfig(vocab, 4, width, 64, context=LENGTH)) for _ in range(2))
    through = lambda model: lambda b: (model.hidden_states(b), model.head_weight)
    return through(policy), through(ref.requires_grad_(False)), batches, list(policy.parameters())


def setup(method, name, part):
    "Forward and backward; the gradients of the last call are dropped first."
    policy, ref, batches, leaves = draw(part, VOCAB, WIDTH, torch.float32)
    def call():
        for x in leaves: x.grad = None
        loss_of(name, METHODS[method], policy, ref, *batches).backward()
    return call


def agree(names, methods):
    "Value and gradients of every method against the library's on logits, in float64, at a small size."
    for name in names:
        exact = small(name, library)
        for method in methods:
            for a, b in zip(small(name, METHODS[method]), exact):
                error = float((a - b).norm()/b.norm())
                if not error < 1e-11: raise SystemExit(f"{method} computes another {name}: off by {error:.1e}")


def small(name, score):
    policy, ref, batches, leaves = draw("head", 300, 16, torch.float64)
    value = loss_of(name, score, policy, ref, *batches)
    return [value.detach(), *torch.autograd.grad(value, leaves[:2 + (name == "hypo")])]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loss", nargs="+", default=["dpo", "tdpo2", "hypo"], choices=["dpo", "tdpo2", "hypo"])
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--part", nargs="+", default=["head", "step"], choices=["head", "step"])
    args = repeats(parser)
    agree(args.loss, args.method)
    for part in args.part:
        for name in args.loss:
            cases = {m: (setup, (m, name, part)) for m in args.method}
            compare(f"vocabulary-{part}-{name}", cases, args.method[0], rounds=args.rounds, warmup=args.warmup,
                    threads=2, allocators=args.allocator,
                    note=f"{name}, {part}, 16 × {LENGTH} tokens, vocabulary {VOCAB}, width {WIDTH}, float32")
