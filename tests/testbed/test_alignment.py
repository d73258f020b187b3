"Methods side by side, on texts made up here: losses that must be each other's limits, and comparisons by hand."
import copy

import pytest
import torch
from torch.testing import assert_close

from kullback.testbed.alignment import (
    METHODS,
    AlignmentBed,
    align,
    answer_loss,
    answer_worth,
    at_nats,
    at_reward,
    counted,
    crossing,
    examine,
    forward_loss,
    holm,
    masked_loss,
    online_loss,
)
from kullback.testbed.reviews import PairBatch, ReviewBed, ReviewLM, reference_logps

WORDS = ["good", "great", "bad", "dull", "a", "film", "story", "it", "is", "so"]


def generator(seed=0): return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv("KULLBACK_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def bed():
    draw = torch.randint(len(WORDS), (120, 8), generator=generator()).tolist()
    texts = ReviewBed.from_texts([[WORDS[i] for i in row] for row in draw], [row[0] - 4.5 for row in draw],
                                 {"good": 2., "great": 3., "bad": -2., "dull": -1.5}, {}, vocab=10, length=8, prompt=2, n_train=90)
    ref, other = (ReviewLM(len(texts.words), generator=generator(s)).eval().requires_grad_(False) for s in (0, 1))
    known = texts.prompts("train")
    prompts = {"learn": known[:60], "valid": known[60:], "test": texts.prompts("test")}
    return AlignmentBed(texts, ref, other, prompts, 64, 1, 32, ())


@pytest.fixture
def batch(bed):
    pairs = bed.pairs(0)
    ids, labels = (torch.cat([pairs[w + s] for w in ("chosen", "rejected")]) for s in ("", "_labels"))
    moved = copy.deepcopy(bed.soup).requires_grad_(True)                       # a policy far from the reference
    return PairBatch(ids, labels, reference_logps(bed.ref, pairs).flatten(), torch.arange(64), moved, bed.ref)


def slope(loss, batch):
    value = loss(batch.policy(batch.ids), batch)
    return value.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(value, list(batch.policy.parameters()))])


def same(a, b, batch, **kw):
    for x, y in zip(slope(a, batch), slope(b, batch)): assert_close(x, y, **(dict(rtol=1e-4, atol=1e-5) | kw))


def test_a_mask_of_ones_is_tdpo1(batch):
    def ones(states, there): return torch.ones_like(there, dtype=torch.float)
    same(masked_loss(.3, ones), forward_loss(.3, "tdpo1"), batch)


def test_tdpo2_that_ignores_divergence_is_dpo(batch): same(forward_loss(.3, "tdpo2", 0.), answer_loss(.3, "reverse_kl"), batch)


def test_f_dpo_is_its_own_family(batch):
    assert abs(slope(answer_loss(.3, "js"), batch)[0] - slope(answer_loss(.3, "reverse_kl"), batch)[0]) > 1e-3


def test_without_a_price_hypo_is_dpo(bed, batch):
    same(online_loss(0., bed.texts, generator(), .3), answer_loss(.3, "reverse_kl"), batch)


def test_f_dpg_towards_the_tilt():
    g = generator()
    r, p, q = (torch.randn(6, 4, generator=g, dtype=torch.float64) for _ in range(3))
    weights = (q + r/.2 - p).softmax(1)*4                                      # self-normalised, of mean one
    assert_close(answer_worth(r, p, q, .2, "forward_kl"), weights)
    assert_close(answer_worth(r, p, q, .2, "js"), -(2/(1 + weights)).log())    # −f′(t) = −log 2t/(1+t) at t = 1/w
    assert_close(answer_worth(r, p, q, .2, "soup"), r - .2*(p - q))
    with pytest.raises(ValueError, match="beta must be positive, got 0"): answer_worth(r, p, q, 0.)


def test_every_method_moves_and_repeats_itself(bed):
    for name, how in METHODS.items():
        one, two, other = (align(bed, name, how.strengths[1], 1e-3, s) for s in (0, 0, 1))
        a, b, c = (torch.cat([w.detach().flatten() for w in m.parameters()]) for m in (one, two, other))
        assert torch.equal(a, b) and not torch.equal(a, c), name
        assert not one.training
    with pytest.raises(ValueError, match="got 'PPO'"): align(bed, "PPO", .1, 1e-3, 0)


def test_tuning_seeds_read_other_prompts(bed):
    a, b = examine(bed, bed.ref, 1001), examine(bed, bed.ref, 0)
    assert a["kl"] == pytest.approx(0, abs=1e-6) and a["reward"] != b["reward"]


def test_a_count_ends_with_its_block(bed):
    reference_logps(bed.ref, bed.pairs(0))
    with counted(bed) as seen: align(bed, "DPO", .1, 1e-3, 0)
    align(bed, "DPO", .1, 1e-3, 0)
    assert dict(seen) == {"learned": 128}
    with pytest.raises(KeyError), counted(bed): raise KeyError
    assert "read" not in vars(ReviewLM)


def point(kl, reward, entropy=0.): return dict(kl=kl, reward=reward, entropy=entropy)


def test_comparisons_by_hand():
    a = [point(0., 0., 3.), point(1., .2, 2.), point(4., .4, 1.)]
    b = [point(0., 0., 3.), point(1., .1, 1.), point(4., .2, 0.)]
    assert at_nats([a], [b]) == pytest.approx([.1*1.5])                        # levels 1.1, 1.3, … 1.9 of √D
    assert at_reward([a], [b], "entropy") == pytest.approx([((2.5 - 1) + (2.25 - .5) + (2 - 0))/3])
    back = [*a, point(9., .2, 2.5)]                                            # the reward falls again: the higher crossing counts
    assert crossing(back, .3, "entropy") == pytest.approx(1.75)
    with pytest.raises(ValueError, match="never crosses reward 0.5"): crossing(a, .5, "entropy")


def test_holm_by_hand():
    assert holm({"a": .01, "b": .04, "c": .03}) == pytest.approx({"a": .03, "c": .06, "b": .06})
    assert holm({"a": .9, "b": .8}) == {"b": 1., "a": 1.}
