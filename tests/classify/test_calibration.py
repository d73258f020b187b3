"`classify.calibration`: stored values, scikit-learn and SciPy, enumeration, invariances."
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp, mannwhitneyu
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from torch.testing import assert_close

from kullback.classify import (
    aurc,
    auroc,
    brier,
    brier_top_label,
    classwise_ece,
    e_aurc,
    ece,
    ks_error,
    mce,
    nll,
    reliability_curve,
    risk_coverage_curve,
)

CONF = torch.tensor([.95, .95, .9, .82, .82, .82, .71, .6, .55, .55, .41, .3], dtype=torch.float64)
CORRECT = torch.tensor([1, 1, 0, 1, 1, 0, 1, 0, 1, 0, 0, 1])


def close(a, b, atol=1e-12):
    as64 = lambda x: torch.as_tensor(x, dtype=torch.float64)
    assert_close(as64(a), as64(b), rtol=0, atol=atol)


def test_stored_values():
    "By a script that follows the definitions with Python loops: ties, empty bins and an edge (.6 at five bins)."
    for got, want in [(ece(CONF, CORRECT, 10), .296666666666667), (mce(CONF, CORRECT, 10), .7),
                      (ece(CONF, CORRECT, 5), .28), (ece(CONF, CORRECT, 4, "mass"), .146666666666667),
                      (ks_error(CONF, CORRECT), .123333333333333), (auroc(CONF, CORRECT), .614285714285714),
                      (aurc(CONF, CORRECT), .304512385762386), (e_aurc(CONF, CORRECT), .185551948051948),
                      (brier_top_label(CONF, CORRECT), .263283333333333)]:
        close(got, want, 1e-14)
    assert reliability_curve(CONF, CORRECT, 5)[2].tolist() == [0, 1, 4, 1, 6]
    assert reliability_curve(CONF, CORRECT, 4, "mass")[2].tolist() == [4, 2, 3, 3]


cases = settings(deadline=None, max_examples=60)
pairs = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=25)


def unpack(pairs):
    "Confidences on a grid of twelfths: ties and bin edges galore."
    return torch.tensor([c for c, _ in pairs], dtype=torch.float64)/12, torch.tensor([int(k) for _, k in pairs])


@cases
@given(pairs, st.integers(1, 14))
def test_width_bins_by_intervals(pairs, M):
    conf, correct = unpack(pairs)
    total, worst = 0., 0.
    for m in range(1, M + 1):
        inside = [i for i, (c, _) in enumerate(pairs) if (m - 1)*12 < c*M <= m*12 or (m == 1 and c == 0)]   # integers: exact
        if inside:
            gap = abs(correct[inside].double().mean() - conf[inside].mean()).item()
            total, worst = total + gap*len(inside)/len(pairs), max(worst, gap)
    close(ece(conf, correct, M), total)
    close(mce(conf, correct, M), worst)


@cases
@given(pairs, st.integers(1, 8))
def test_nothing_depends_on_the_order_of_the_data(pairs, M):
    conf, correct = unpack(pairs)
    perm = torch.randperm(len(conf), generator=torch.Generator().manual_seed(len(pairs)))
    metrics = [lambda c, k: ece(c, k, M), lambda c, k: ece(c, k, M, "mass"), ks_error, aurc, e_aurc, brier_top_label]
    if 0 < correct.sum() < len(correct): metrics.append(auroc)
    for metric in metrics: close(metric(conf[perm], correct[perm]), metric(conf, correct))


@cases
@given(pairs, st.integers(1, 6))
def test_bounds(pairs, M):
    conf, correct = unpack(pairs)
    least = (correct.double().mean() - conf.mean()).abs()
    for kind in ("width", "mass"):
        value = ece(conf, correct, M, kind)
        assert least - 1e-12 <= value <= (conf - correct).abs().mean() + 1e-12
    assert value >= 0 and mce(conf, correct, M) >= ece(conf, correct, M) - 1e-12
    assert ece(conf, correct, 2*M) >= ece(conf, correct, M) - 1e-12        # merging bins hides, never adds
    assert least - 1e-12 <= ks_error(conf, correct) <= ece(conf, correct, 12*M) + 1e-12
    assert 0 <= e_aurc(conf, correct) + 1e-12 and 0 <= aurc(conf, correct) <= 1 + 1e-12


def test_mass_bins_hold_equal_numbers():
    for N, M in [(20, 4), (23, 5), (7, 7), (1000, 15)]:
        conf = torch.rand(N, generator=torch.Generator().manual_seed(N), dtype=torch.float64)
        count = reliability_curve(conf, torch.zeros(N), M, "mass")[2]
        assert count.sum() == N and count.max() - count.min() <= 1
    assert reliability_curve(conf[:3], torch.zeros(3), 5, "mass")[2].sum() == 3          # more bins than examples


def test_curves_of_scikit_learn():
    g = torch.Generator().manual_seed(0)
    conf = torch.rand(600, generator=g, dtype=torch.float64)
    correct = (torch.rand(600, generator=g) < conf).long()
    for kind, theirs in [("width", "uniform"), ("mass", "quantile")]:
        kept, promised = calibration_curve(correct.numpy(), conf.numpy(), n_bins=10, strategy=theirs)
        ours = reliability_curve(conf, correct, 10, kind)
        close(ours[0], promised)
        close(ours[1], kept)


@cases
@given(st.integers(0, 10**6), st.integers(2, 60))
def test_ranks_and_scores_of_other_libraries(seed, N):
    g = torch.Generator().manual_seed(seed)
    conf = torch.randint(8, (N,), generator=g).double()/8
    correct = torch.randint(2, (N,), generator=g)
    correct[:2] = torch.tensor([0, 1])
    close(auroc(conf, correct), roc_auc_score(correct.numpy(), conf.numpy()))
    U = mannwhitneyu(conf[correct == 1].numpy(), conf[correct == 0].numpy()).statistic
    close(auroc(conf, correct), U/(correct.sum()*(1 - correct).sum()).item())
    close(brier_top_label(conf, correct), brier_score_loss(correct.numpy(), conf.numpy()))
    close(brier(torch.stack([1 - conf, conf], 1), correct), 2*brier_score_loss(correct.numpy(), conf.numpy()))
    probs = torch.randn(N, 4, generator=g, dtype=torch.float64).softmax(-1)
    labels = torch.randint(4, (N,), generator=g)
    close(nll(probs, labels), log_loss(labels.numpy(), probs.numpy(), labels=range(4)))


@cases
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_ks_beside_scipy(seed, n):
    "With confidences near ½ and as many right as wrong, each partial sum is a quarter of the distance of two samples."
    g = np.random.default_rng(seed)
    right, wrong = g.integers(0, 9, (2, n))                       # ties too
    conf = .5 + torch.tensor(np.r_[right, wrong]).double()*1e-12
    correct = torch.tensor([1]*n + [0]*n)
    close(ks_error(conf, correct), ks_2samp(right, wrong).statistic/4, 1e-10)


def by_hand(correct):
    return sum(sum(1 - x for x in correct[:i])/i for i in range(1, len(correct) + 1))/len(correct)


@pytest.mark.parametrize("N", [1, 2, 5])
def test_aurc_by_enumeration(N):
    "Every pattern of errors, every arrangement of ties: shared errors are the mean over all orders."
    for levels in itertools.combinations_with_replacement((.9, .6, .3), N):
        conf = torch.tensor(levels, dtype=torch.float64)
        for correct in itertools.product((0, 1), repeat=N):
            values = []
            for order in itertools.permutations(range(N)):
                if all(levels[i] >= levels[j] for i, j in zip(order, order[1:])): values.append(by_hand([correct[i] for i in order]))
            best = by_hand(sorted(correct, reverse=True))
            close(aurc(conf, torch.tensor(correct)), sum(values)/len(values))
            close(e_aurc(conf, torch.tensor(correct)), sum(values)/len(values) - best)


def test_aurc_ends():
    conf = torch.arange(10, 0, -1).double()/10
    coverage, risk = risk_coverage_curve(conf, torch.tensor([1]*7 + [0]*3))
    close(coverage, torch.arange(1, 11)/10., 1e-7)
    close(risk, [0]*7 + [1/8, 2/9, 3/10])
    assert e_aurc(conf, torch.tensor([1]*7 + [0]*3)) == 0
    assert aurc(conf, torch.ones(10)) == 0 and aurc(conf, torch.zeros(10)) == 1
    patterns = set(itertools.permutations([1]*6 + [0]*2))
    values = {c: aurc(conf[:8], torch.tensor(c)).item() for c in patterns}
    assert max(values, key=values.get) == (0, 0, 1, 1, 1, 1, 1, 1) and min(values, key=values.get) == (1,)*6 + (0,)*2


def test_probabilities_and_pairs_are_the_same_question():
    g = torch.Generator().manual_seed(1)
    probs, labels = (2*torch.randn(300, 5, generator=g, dtype=torch.float64)).softmax(-1), torch.randint(5, (300,), generator=g)
    conf, correct = probs.max(-1).values, probs.argmax(-1) == labels
    for f in (ece, mce, brier_top_label, aurc, e_aurc):
        assert f(probs, labels) == f(conf, correct)                        # bool correctness is accepted
    for a, b in zip(risk_coverage_curve(probs, labels), risk_coverage_curve(conf, correct.float())): assert torch.equal(a, b)
    perm = torch.randperm(5, generator=g)
    for f in (ece, brier, nll, classwise_ece): close(f(probs[:, perm], perm.argsort()[labels]), f(probs, labels))


def test_classwise_is_the_mean_of_one_against_rest():
    g = torch.Generator().manual_seed(2)
    probs, labels = torch.randn(200, 3, generator=g, dtype=torch.float64).softmax(-1), torch.randint(3, (200,), generator=g)
    close(classwise_ece(probs, labels, 7), sum(ece(probs[:, k], labels == k, 7) for k in range(3))/3)
    two = probs[:, :2]/probs[:, :2].sum(-1, keepdim=True)
    onehot = torch.eye(2, dtype=torch.float64)[labels % 2]
    close(classwise_ece(onehot, labels % 2), 0)
    close(brier(onehot, 1 - labels % 2), 2)
    assert classwise_ece(two, labels % 2) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_inputs(dtype):
    "Confidences are taken at their own value, ties and edges included; sums run in float64."
    conf = torch.tensor([.1, .2, .3, .5, .7, .9], dtype=dtype)
    assert reliability_curve(conf, torch.ones(6), 10)[2].tolist() == [1, 1, 1, 0, 1, 0, 1, 0, 1, 0]
    for f in (ece, ks_error, aurc, auroc, brier_top_label):
        correct = torch.tensor([0, 1, 1, 0, 1, 1])
        value = f(conf, correct)
        assert value.dtype == torch.float64
        if f is not ece: close(value, f(conf.double(), correct))


def test_gradients_where_there_are_any():
    conf = torch.tensor([.31, .52, .77, .93], dtype=torch.float64, requires_grad=True)
    correct = torch.tensor([0, 1, 1, 0])
    for f in (lambda c: ece(c, correct, 4), lambda c: mce(c, correct, 4), lambda c: ks_error(c, correct),
              lambda c: brier_top_label(c, correct)):
        assert torch.autograd.gradcheck(f, (conf,))


@pytest.mark.parametrize("f", [ece, mce, brier_top_label, aurc, e_aurc, risk_coverage_curve, reliability_curve])
def test_refused_pairs(f):
    for conf, correct, said in [([1.2, .5], [0, 1], "got 1.2"), ([-.1, .5], [0, 1], "got -0.1"), ([math.nan, .5], [0, 1], "nan"),
                                ([.5, .5], [0, 2], "got 2"), ([.5], [0, 1], "shapes differ"), ([], [], "no examples")]:
        with pytest.raises(ValueError, match=said): f(torch.tensor(conf), torch.tensor(correct))


@pytest.mark.parametrize("f", [ece, mce, brier_top_label, aurc, e_aurc, nll, brier, classwise_ece])
def test_refused_probabilities(f):
    good, labels = torch.full((2, 4), .25), torch.tensor([0, 3])
    for probs, ids, said in [(good*2, labels, "sum to 1, got 2"), (good - .5, labels, "got -0.25"), (good, labels + 1, "0..3, got 4"),
                             (good, labels[:1], r"\(2,\)"), (good, labels.float(), "float32"), (good[:0], labels[:0], "not empty"),
                             (good[None], labels, "must be")]:
        with pytest.raises(ValueError, match=said): f(probs, ids)


def test_other_refusals():
    for n_bins in (0, -3):
        with pytest.raises(ValueError, match=f"got {n_bins}"): ece(CONF, CORRECT, n_bins)
    with pytest.raises(ValueError, match="'quantile'"): ece(CONF, CORRECT, kind="quantile")
    for correct in (CORRECT*0, CORRECT*0 + 1):
        with pytest.raises(ValueError, match="right and wrong"): auroc(CONF, correct)
    with pytest.raises(ValueError, match="must be 0 or 1"): ks_error(CORRECT.double(), CONF)      # arguments swapped
