"Searches keep their books; tables keep their numbers."
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kullback.nas import (
    TabularBenchmark,
    derived_choice,
    dirichlet_alpha,
    gumbel_hard,
    inherited_score,
    kendall_tau,
    one_hot_alphas,
    search_choices,
    search_single_stage,
    search_spos,
    sparsemax,
)


def gen(seed=0): return torch.Generator().manual_seed(seed)


class Twice(nn.Module):
    "Scales its input by a mixture of 1, 2, 3 and one weight; drops out while training."
    choices = {"scale": (1, 2, 3)}
    def __init__(self):
        super().__init__()
        self.w, self.drop, self.modes = nn.Parameter(torch.ones(())), nn.Dropout(.5), []

    def forward(self, x, alphas):
        self.modes.append(self.training)
        return self.drop(self.w*x*(alphas["scale"]*torch.tensor([1., 2., 3.])).sum())


def halves(n=4): return [(torch.ones(2), torch.full((2,), 2.))]*n, [(torch.ones(2), torch.full((2,), 2.))]*3


def test_modes_are_given_back():
    for training in (True, False):
        net = Twice().train(training)
        search_single_stage(net, halves(), sparsemax, 1, 1e-3, .1, gen(), loss=F.mse_loss)
        assert all(net.modes) and net.training == training
        search_spos(net, halves(), 1, 1e-3, 3, generator=gen(), loss=F.mse_loss)
        assert not any(net.modes[-9:]) and net.training == training


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_same_generator_same_search(optimizer):
    runs = [search_single_stage(Twice().eval(), halves(), dirichlet_alpha, 2, 1e-2, .1, gen(5), loss=lambda o, y: o.square().mean(),
                                optimizer=optimizer) for _ in range(2) if torch.manual_seed(0)]
    assert runs[0].choice == runs[1].choice and torch.equal(runs[0].scores["scale"], runs[1].scores["scale"])


def test_temperature_falls_linearly_and_only_where_asked():
    seen = []
    def spy(beta, temperature, generator=None): seen.append(temperature); return gumbel_hard(beta, temperature, generator)
    search_single_stage(Twice(), halves(1), spy, 4, 1e-3, .1, gen(), loss=F.mse_loss, temperature=(4., 1.))
    assert seen == [4., 4., 3., 3., 2., 2., 1., 1.]
    search_single_stage(Twice(), halves(1), lambda beta: beta.softmax(0), 1, 1e-3, .1, gen(), loss=F.mse_loss)


def test_weights_never_see_the_validation_half():
    "A validation loss of nothing leaves β to its decay alone, and the weights learn; the other way round likewise."
    loss = lambda out, y: (out*y).mean()
    train, nothing = [(torch.ones(2), torch.ones(2))]*2, [(torch.ones(2), torch.zeros(2))]
    net = Twice()
    found = search_single_stage(net, (train, nothing), sparsemax, 1, .1, .1, gen(), loss=loss, arch_decay=0.)
    assert torch.equal(found.scores["scale"], 1e-3*torch.randn(3, generator=gen())) and net.w < .9
    net = Twice()
    found = search_single_stage(net, (nothing, train), sparsemax, 1, .1, .1, gen(), loss=loss, weight_decay=0.)
    assert net.w == 1 and found.choice == {"scale": 1}


def test_evaluations_are_counted():
    found = search_spos(Twice(), halves(), 3, 1e-3, 2, "evolution", gen(), loss=F.mse_loss, anytime=1)
    assert [h["evaluations"] for h in found.history] == [2, 4, 6] and len(found.scores) == 2
    found = search_spos(Twice(), halves(), 5, 1e-3, 2, generator=gen(), loss=F.mse_loss, anytime=2)
    assert [h["evaluations"] for h in found.history] == [0, 2, 2, 4, 6]
    found = search_spos(Twice(), halves(), 3, 1e-3, 2, generator=gen(), loss=F.mse_loss)
    assert [(h["evaluations"], h["choice"] is None) for h in found.history] == [(0, True), (0, True), (2, False)]


def test_a_score_weighs_examples_not_batches():
    net, loader = Twice(), [(torch.ones(3), torch.zeros(3)), (torch.full((1,), 5.), torch.zeros(1))]
    assert inherited_score(net, {"scale": 2}, loader, lambda out, y: out.mean()) == (3*2 + 10)/4


@pytest.mark.parametrize("strategy", ["random", "evolution"])
@pytest.mark.parametrize("budget", [1, 2, 5, 12])
def test_no_architecture_is_evaluated_twice(strategy, budget):
    calls = []
    seen = search_choices({"a": (1, 2, 3), "b": "xy", "c": (0, 1)}, lambda c: calls.append(tuple(c.values())) or c["a"], budget, strategy, gen())
    assert len(calls) == len(set(calls)) == budget == len(seen) and [tuple(c.values()) for c, _ in seen] == calls


def test_choice_and_corner_are_inverse():
    choices = {"a": (1, 2, 3), "b": ("x", "y")}
    for values in itertools.product(*choices.values()):
        choice = dict(zip(choices, values))
        assert derived_choice(choices, one_hot_alphas(choices, choice)) == choice


def test_a_table_in_either_direction():
    bench = TabularBenchmark({"a": {"acc": [1, 3], "nats": [3, 3]}, "b": {"acc": [5, 5], "nats": [1, 1]}, "c": {"acc": [5, 5], "nats": [7, 9]}})
    assert [bench.regret(k) for k in "abc"] == [3, 0, 0] and [bench.rank(k) for k in "abc"] == [3, 1, 1]
    assert [bench.regret(k, "nats") for k in "abc"] == [2, 0, 7] and bench.best("nats") == "b"
    assert bench.random_regret() == 1 and bench.random_regret("nats") == 3 and bench.random_regret(draws=3) == 0
    assert bench.random_regret("nats", draws=2) == pytest.approx(2/3)
    assert bench.se() == pytest.approx(math.sqrt(2/3/2)) and math.isnan(TabularBenchmark({"a": 1.}).se())


def test_what_is_saved_comes_back(tmp_path):
    bench = TabularBenchmark({(1, "x"): {"m": [.1, .25]}, (2, "y"): {"m": [1e-9, 3]}}, ("a", "b"), (), {"seeds": [1, 2]})
    bench.save(tmp_path/"t.json")
    again = TabularBenchmark.load(tmp_path/"t.json")
    assert vars(again) == vars(bench)
    data = json.loads((tmp_path/"t.json").read_text())
    data["rows"][0][1]["m"][0] = .2
    (tmp_path/"t.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="t.json: rows have"): TabularBenchmark.load(tmp_path/"t.json")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2]/"reproductions"/"nas"/"tables").glob("*.json")), ids=lambda p: p.stem)
def test_kept_tables(path):
    "They are whole, and as they were written."
    bench = TabularBenchmark.load(path)
    assert all(len(arch) == len(bench.names) for arch in bench) and bench.about["seeds"] and bench.about["data"]["sha256"]
    assert len(bench) == math.prod(len({arch[i] for arch in bench}) for i in range(len(bench.names)))


def test_kendall_of_few():
    assert kendall_tau(torch.tensor([1., 2., 3., 4.]), [1, 3, 2, 4]) == pytest.approx(4/6)


def test_refusals():
    with pytest.raises(ValueError, match="needs choices"): search_single_stage(_no_choices(), halves(), sparsemax, 1, .1, .1)
    with pytest.raises(ValueError, match="steps must be positive, got 0"): search_spos(Twice(), halves(), 0, .1, 3)
    with pytest.raises(ValueError, match="batches_of_validation must be positive, got 0"):
        search_single_stage(Twice(), (halves()[0], []), sparsemax, 1, .1, .1)
    with pytest.raises(ValueError, match="1..3, got 4"): search_spos(Twice(), halves(), 1, .1, 4, loss=F.mse_loss)
    with pytest.raises(ValueError, match="a table needs"): TabularBenchmark({})
    with pytest.raises(ValueError, match="as many values"): TabularBenchmark({"a": [1, 2], "b": [1]})


def _no_choices():
    net = Twice()
    net.choices = {}
    return net
