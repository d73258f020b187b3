"`align.evaluate`: facts that the page would be bored by."
import itertools

import numpy as np
import pytest
import torch
from draws import normal
from scipy.interpolate import PchipInterpolator
from torch.testing import assert_close

from kullback.align import (
    TabularPolicy,
    distinct_ngrams,
    evaluate_policy,
    frontier,
    matched_gain,
    preference_accuracy,
    self_overlap,
    win_rate,
)
from kullback.language import sample, sequence_logps, sequential_kl


def generator(seed=0): return torch.Generator().manual_seed(seed)


def ragged(n=12, L=7, V=4, seed=0):
    g = generator(seed)
    tokens, length = torch.randint(V, (n, L), generator=g), torch.randint(1, L + 1, (n, 1), generator=g)
    return tokens, torch.arange(L) < length


def grams(row, keep, k): return [tuple(row[i:i + k]) for i in range(len(row) - k + 1) if all(keep[i:i + k])]


@pytest.mark.parametrize("seed", range(4))
def test_variety_by_loops(seed):
    tokens, mask = ragged(seed=seed)
    rows = list(zip(tokens.tolist(), mask.tolist()))
    for k in (1, 2, 3):
        every = [g for row, keep in rows for g in grams(row, keep, k)]
        assert distinct_ngrams(tokens, mask, k) == pytest.approx(len(set(every))/len(every))
    for group in (2, 3, 4):
        found = []
        for i in range(0, len(rows), group):
            sets = [set(grams(row, keep, 2)) for row, keep in rows[i:i + group]]
            found += [len(a & b)/len(a | b) for a, b in itertools.combinations(sets, 2) if a | b]
        assert self_overlap(tokens, mask, group) == pytest.approx(np.mean(found))


def test_variety_does_not_read_what_is_masked():
    tokens, mask = ragged()
    other = tokens.where(mask, torch.full_like(tokens, 3))
    assert distinct_ngrams(tokens, mask) == distinct_ngrams(other, mask) and self_overlap(tokens, mask) == self_overlap(other, mask)
    assert self_overlap(tokens[:1].expand(4, -1), torch.ones(4, 7, dtype=torch.bool)) == 1


def test_win_rate():
    a, b = torch.tensor([1., 2., 3., 4.]), torch.tensor([0., 2., 5., 4.])
    assert win_rate(a, b) == .5 and win_rate(a, a - 1) == 1 and win_rate(a, b) + win_rate(b, a) == 1


def test_every_number_from_the_texts_that_are_returned():
    V, T, n = 5, 4, 40
    policy, ref = TabularPolicy(V, T, generator=generator(0)), TabularPolicy(V, T, generator=generator(1))
    prompts, worth = torch.tensor([[0], [1], [2]]), normal(V)
    reward = lambda tokens: worth[tokens[:, 1:]].sum(-1)
    out = evaluate_policy(policy, ref, prompts, n, T, reward, eos=2, pad=4, generator=generator(2))
    tokens, mask = out["tokens"], out["mask"]
    assert tokens[:, 0].tolist() == [i//4 % 3 for i in range(n)]                       # groups of four
    again = sample(policy, tokens[:, :1], T, eos=2, pad=4, coupling="race", generator=generator(2))
    assert torch.equal(again[0], tokens) and torch.equal(again[1], mask)
    labels = tokens.masked_fill(~mask, -100)
    kl = sequential_kl(policy(tokens), ref(tokens), labels, "reverse")
    assert_close(out["reverse_kls"], kl)
    assert out["reverse_kl"] == pytest.approx(kl.mean().item())
    refs, drawn = out["ref_sample"]
    assert out["forward_kl"] == pytest.approx(
        sequential_kl(policy(refs), ref(refs), refs.masked_fill(~drawn, -100), "forward").mean().item())
    P = policy(tokens)[:, :-1].softmax(-1)
    assert out["entropy"] == pytest.approx((-(P*P.log()).sum(-1)[mask[:, 1:]]).mean().item())
    assert out["length"] == mask.sum(-1).double().mean() and out["n"] == n
    assert out["reward"] == pytest.approx(reward(tokens).mean().item())
    assert out["reward_se"] == pytest.approx((reward(tokens).std()/n**.5).item())
    assert out["distinct_1"] == distinct_ngrams(tokens, mask & (tokens != 2), 1)


def test_the_same_clocks_for_every_policy():
    V, T = 5, 3
    a, b, ref = (TabularPolicy(V, T, generator=generator(s)) for s in range(3))
    start = torch.zeros(1, 1, dtype=torch.long)
    run = lambda policy, **more: evaluate_policy(policy, ref, start, 80, T, generator=generator(7), **more)
    one, two = run(a), run(b)
    assert torch.equal(one["ref_sample"][0], two["ref_sample"][0])
    kept = run(b, ref_sample=one["ref_sample"])
    assert kept["forward_kl"] == two["forward_kl"] and torch.equal(kept["tokens"], two["tokens"])
    alone = run(ref)
    assert alone["reverse_kl"] == alone["forward_kl"] == 0


def test_accuracy_by_log_ratios():
    policy, ref = TabularPolicy(3, 2, generator=generator(0)), TabularPolicy(3, 2, generator=generator(1))
    ids = torch.randint(3, (2, 50, 3), generator=generator(2))
    labels = ids.masked_fill(torch.arange(3) == 0, -100)
    pairs = dict(chosen=ids[0], rejected=ids[1], chosen_labels=labels[0], rejected_labels=labels[1])
    c, r = (sequence_logps(policy(x), y) - sequence_logps(ref(x), y) for x, y in zip(ids, labels))
    want = ((c > r).double() + .5*(c == r)).mean().item()
    assert preference_accuracy(policy, ref, pairs, chunk=7) == pytest.approx(want)
    start = torch.zeros(1, 1, dtype=torch.long)
    assert evaluate_policy(policy, ref, start, 8, 2, pairs=pairs, generator=generator())["accuracy"] == pytest.approx(want)


def test_frontier_is_pchip_in_any_order():
    points = [(3., .4), (0., .1), (7., .9), (1., .35)]
    curve = frontier(points)
    at = np.linspace(0, 7, 50)
    assert np.array_equal(curve(at), PchipInterpolator([0, 1, 3, 7], [.1, .35, .4, .9])(at))
    assert (np.diff(curve(at)) >= 0).all() and curve(1.) == .35
    assert frontier([{"reverse_kl": k, "reward": r, "n": 8} for k, r in points])(2.) == curve(2.)


def test_frontier_does_not_overshoot():
    curve = frontier([(0, 0), (1, 1), (2, 1), (3, .2)])                                # over-optimised
    assert curve(np.linspace(0, 3, 301)).max() == 1 and curve([1.5])[0] == 1


def test_matched_gain_of_shifted_lines():
    line = lambda slope, shift, kls: [(k, slope*k + shift) for k in kls]
    mine, theirs = [line(1, s + .3, (0, 2, 4)) for s in range(3)], [line(1, s, (1, 2.5, 6)) for s in range(3)]
    nats, gain = matched_gain(mine, theirs)
    assert np.allclose(nats, 1 + 3*np.arange(1, 6)/6) and gain.shape == (3, 5) and np.allclose(gain, .3)
    nats, gain = matched_gain(mine, theirs, [1., 4.])
    assert nats.tolist() == [1, 4] and np.allclose(gain, .3)
    assert np.allclose(matched_gain(theirs, mine)[1], -.3)


def test_refusals():
    with pytest.raises(ValueError, match="two points or more, got 1"): frontier([(0, 1)])
    with pytest.raises(ValueError, match="must be finite"): frontier([(0, 1), (1, float("nan"))])
    with pytest.raises(ValueError, match="got -0.1"): frontier([(0, 1), (1, 2)])(-.1)
    with pytest.raises(ValueError, match="got nan"): frontier([(0, 1), (1, 2)])(float("nan"))
    with pytest.raises(ValueError, match="levels must be 1 or more, got 0"): matched_gain([[(0, 1), (1, 2)]], [[(0, 1), (1, 2)]], 0)
    with pytest.raises(ValueError, match="from 0 to 1 nats, got 2"): matched_gain([[(0, 1), (1, 2)]], [[(0, 1), (3, 2)]], [2.])
    tokens, mask = ragged()
    with pytest.raises(ValueError, match="no text has 8 tokens"): distinct_ngrams(tokens.repeat(1, 2), torch.zeros(12, 14).bool(), 8)
    with pytest.raises(ValueError, match="k must be positive"): distinct_ngrams(tokens, mask, 0)
    with pytest.raises(ValueError, match="groups of 1"): self_overlap(tokens, mask, 1)
    with pytest.raises(ValueError, match="shapes differ"): win_rate(torch.ones(2), torch.ones(3))
