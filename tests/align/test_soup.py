"Soups: PyTorch's own average, algebra of weights, and what must not be averaged."
import copy

import pytest
import torch
from draws import normal
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close

from kullback.align import average_state_dicts, interpolation_curve, loss_barrier, model_soup
from kullback.divergence import kl_from_logits, renyi_divergence, soft_value


def close(a, b, atol=1e-12): assert_close(a, b, rtol=0, atol=atol)


class Tied(nn.Module):
    "An embedding whose weights are the output's, with a batch norm between."
    def __init__(self, seed):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.embed, self.norm, self.out = nn.Embedding(7, 4), nn.BatchNorm1d(4), nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight
        self.double()
        for p in self.parameters(): p.data = torch.randn(p.shape, generator=g, dtype=torch.float64)
        self.norm.running_mean.copy_(torch.randn(4, generator=g, dtype=torch.float64))

    def forward(self, ids): return self.out(self.norm(self.embed(ids)))


MODELS = [Tied(seed) for seed in range(3)]
IDS = torch.arange(7)


def test_against_torch_averaged_model():
    oracle = AveragedModel(MODELS[0], use_buffers=True)
    for m in MODELS: oracle.update_parameters(m)
    ours = model_soup(MODELS).state_dict()
    for key, value in oracle.module.state_dict().items(): close(ours[key], value)


def test_tied_weights_stay_tied():
    soup = model_soup(MODELS)
    assert soup.out.weight is soup.embed.weight


def test_the_soup_is_frozen_and_its_ingredients_are_untouched():
    before = [copy.deepcopy(m.state_dict()) for m in MODELS]
    modes = [m.training for m in MODELS]
    soup = model_soup(MODELS)
    assert not soup.training and not any(p.requires_grad for p in soup.parameters())
    with torch.no_grad(): soup.embed.weight.zero_()
    soup.norm.num_batches_tracked.add_(1)
    for m, state, mode in zip(MODELS, before, modes):
        assert m.training == mode and all(p.requires_grad for p in m.parameters())
        assert all(torch.equal(m.state_dict()[k], v) for k, v in state.items())


def test_weights_are_linear_and_associative():
    a, b, c = (m.state_dict() for m in MODELS)
    ab = average_state_dicts([a, b], [.25, .75])
    nested = average_state_dicts([ab, c], [.6, .4])
    flat = average_state_dicts([a, b, c], [.15, .45, .4])
    beyond = average_state_dicts([a, b], [1.5, -.5])
    for key in a:
        if not a[key].is_floating_point(): continue
        close(ab[key], b[key] + .25*(a[key] - b[key]))
        close(nested[key], flat[key])
        close(beyond[key], a[key] + .5*(a[key] - b[key]))


def test_identical_models_to_the_last_bit():
    state = MODELS[0].state_dict()
    for weights in ([.5, .5], [1., 0.], [0., 1.]):
        assert all(torch.equal(v, state[k]) for k, v in average_state_dicts([state, state], weights).items())


def test_a_model_of_weight_zero_may_be_broken():
    broken = {"w": torch.tensor([float("nan")])}
    assert average_state_dicts([{"w": torch.ones(1)}, broken], [1, 0])["w"].item() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32_and_stored_as_it_came(dtype):
    states = [{"w": normal(50, seed=s).to(dtype)} for s in range(4)]
    soup = average_state_dicts(states)["w"]
    assert soup.dtype == dtype and torch.equal(soup, torch.stack([s["w"].float() for s in states]).mean(0).to(dtype))


@pytest.mark.parametrize("alpha", [.1, .5, .9])
def test_linear_head_is_a_geometric_mixture_with_a_discount(alpha):
    features = normal(6, 4)
    heads = [nn.Linear(4, 5).double() for _ in range(2)]
    for s, h in enumerate(heads):
        for p in h.parameters(): p.data = normal(*p.shape, seed=s)
    soup = model_soup(heads, [alpha, 1 - alpha])(features).log_softmax(-1)
    one, two = (h(features).detach().log_softmax(-1) for h in heads)
    close(soup, (one.exp()**alpha*two.exp()**(1 - alpha)/(one.exp()**alpha*two.exp()**(1 - alpha)).sum(-1, keepdim=True)).log(), 1e-10)
    pi = normal(6, 5, seed=9).log_softmax(-1)
    discount = (1 - alpha)*renyi_divergence(one, two, alpha)
    close(kl_from_logits(pi, soup), alpha*kl_from_logits(pi, one) + (1 - alpha)*kl_from_logits(pi, two) - discount)
    assert (discount > 0).all()


def test_soft_value_is_reached_by_ascent_and_not_exceeded():
    "J by gradient ascent on a softmax: another road than the closed form."
    reward, ref, w = normal(5), normal(5, seed=1).log_softmax(-1), torch.zeros(5, dtype=torch.float64, requires_grad=True)
    J = lambda: (w.softmax(-1)*reward).sum() - .4*kl_from_logits(w, ref)
    opt = torch.optim.LBFGS([w], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe")
    def closure():
        opt.zero_grad()
        loss = -J()
        loss.backward()
        return loss
    opt.step(closure)
    close(J().detach(), soft_value(reward, .4, ref), 1e-10)


def test_curve_meets_both_models_and_runs_without_gradients():
    seen = []
    def metric(m):
        seen.append((m.training, torch.is_grad_enabled()))
        return m(IDS).square().sum()
    alphas = torch.tensor([0., .5, 1.]).double()
    curve = interpolation_curve(MODELS[0], MODELS[1], metric, alphas)
    ends = [copy.deepcopy(m).eval()(IDS).square().sum().detach() for m in MODELS[:2]]
    close(curve[2], ends[0])
    close(curve[0], ends[1])
    assert seen == [(False, False)]*3 and curve.dtype == torch.float64 and not curve.requires_grad
    assert interpolation_curve(MODELS[0], MODELS[1], lambda m: 3., alphas).tolist() == [3., 3., 3.]


def test_beside_a_foreign_default_device():
    with torch.device("meta"):
        soup = model_soup(MODELS)
        curve = interpolation_curve(*MODELS[:2], lambda m: m(IDS).sum(), torch.linspace(0, 1, 3, device="cpu"))
        assert loss_barrier(curve) >= 0
    assert {t.device.type for t in [*soup.state_dict().values(), curve]} == {"cpu"}


def test_barrier_is_measured_from_the_chord():
    assert loss_barrier(torch.tensor([1., 4., 3.])) == 2
    assert loss_barrier(torch.tensor([1., 0., 3.])) == 0
    assert loss_barrier(torch.tensor([3., 3., 0.])) == 1.5


@pytest.mark.parametrize("call, message", [
    (lambda: average_state_dicts([]), "empty"),
    (lambda: average_state_dicts([{}, {}], [.5, .6]), "sum to 1, got 1.1"),
    (lambda: average_state_dicts([{}, {}], [float("nan"), 1.]), "got nan"),
    (lambda: average_state_dicts([{"a": torch.ones(1)}, {"b": torch.ones(1)}]), r"\['a', 'b'\]"),
    (lambda: average_state_dicts([{"a": torch.ones(1)}, {"a": torch.ones(2)}]), "shapes of a differ"),
    (lambda: average_state_dicts([{"a": torch.ones(1)}, {"a": torch.ones(1).half()}]), "dtypes of a differ"),
    (lambda: average_state_dicts([{"a": torch.tensor(1)}, {"a": torch.tensor(2)}], [1, 0]), "a cannot be averaged"),
    (lambda: loss_barrier(torch.zeros(2)), r"got \(2,\)"),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message): call()
