"`language.sampling`: facts that the page would be bored by."
import pytest
import torch
from draws import normal
from torch.testing import assert_close

from kullback.language import exponential_race, inverse_cdf, sample, top_p_filter


class Steps:
    "Logits of the last token only; counts how it was asked."
    def __init__(self, table): self.table, self.calls = table, []
    def __call__(self, ids): self.calls.append("whole"); return self.table[ids]
    def step(self, ids, state): self.calls.append("step"); return self.table[ids], (0 if state is None else state) + 1


def test_the_die_at_the_edges():
    logits = torch.tensor([.25, .25, .5]).double().log()
    for u, token in ((0., 0), (.25 - 1e-12, 0), (.25 + 1e-12, 1), (.5 + 1e-12, 2), (1 - 1e-16, 2)):
        assert inverse_cdf(logits, torch.tensor(u, dtype=torch.float64)).item() == token


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_what_cannot_be_is_never_drawn(dtype):
    logits = normal(6).to(dtype)
    logits[[0, 3, 5]] = -torch.inf
    u = torch.linspace(0, 1 - 2**-24, 5001)
    assert set(inverse_cdf(logits.expand(5001, 6), u).tolist()) == {1, 2, 4}


def test_a_constant_and_leading_axes_change_nothing():
    logits, u = normal(3, 4, 9), torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    rows = torch.stack([torch.stack([inverse_cdf(logits[i, j], u[i, j]) for j in range(4)]) for i in range(3)])
    assert torch.equal(inverse_cdf(logits, u), rows)
    assert torch.equal(inverse_cdf(logits + 7, u), rows)


def test_nucleus_by_hand():
    logits = torch.tensor([.1, .4, .3, .2]).double().log()
    kept = lambda p: top_p_filter(logits, p).isfinite().nonzero().flatten().tolist()
    assert [kept(p) for p in (1e-9, .39, .41, .69, .71, .95, 1.)] == [[1], [1], [1, 2], [1, 2], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    inside = top_p_filter(logits, .6)[[1, 2]]
    assert torch.equal(inside, logits[[1, 2]])
    even = top_p_filter(torch.zeros(4).double(), .5)
    assert even.isfinite().tolist() == [True, True, False, False]


def test_steps_are_used_and_agree_with_whole_passes():
    table, prompts = normal(5, 5), torch.tensor([[0, 1], [2, 3], [4, 4]])
    u = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    stepping = Steps(table)
    a, b = sample(stepping, prompts, 6, u), sample(lambda ids: table[ids], prompts, 6, u)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert stepping.calls == ["step"]*(2 + 5)                  # the last token drawn is not read


def test_generator_and_uniforms_are_one_source():
    table, prompts = normal(5, 5), torch.zeros(4, 1, dtype=torch.long)
    g = lambda: torch.Generator().manual_seed(3)
    u = torch.rand(4, 7, generator=g())
    assert torch.equal(sample(lambda i: table[i], prompts, 7, u)[0], sample(lambda i: table[i], prompts, 7, generator=g())[0])


def test_a_row_does_not_depend_on_its_neighbours():
    table, prompts = normal(5, 5), torch.arange(5)[:, None]
    u = torch.rand(5, 4, generator=torch.Generator().manual_seed(3))
    whole = sample(lambda i: table[i], prompts, 4, u, eos=1)[0]
    for i in range(5): assert torch.equal(sample(lambda j: table[j], prompts[i:i + 1], 4, u[i:i + 1], eos=1)[0], whole[i:i + 1])


def test_cold_and_narrow_are_greedy():
    table, prompts = normal(6, 6), torch.arange(6)[:, None]
    greedy = prompts
    for _ in range(5): greedy = torch.cat([greedy, table[greedy[:, -1:]].argmax(-1)], 1)
    for how in (dict(temperature=1e-6), dict(top_p=1e-9)):
        assert torch.equal(sample(lambda i: table[i], prompts, 5, generator=torch.Generator().manual_seed(0), **how)[0], greedy)


def test_temperature_divides():
    table, prompts = normal(6, 6), torch.arange(6)[:, None]
    u = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(sample(lambda i: table[i], prompts, 5, u, temperature=2.)[0], sample(lambda i: table[i]/2, prompts, 5, u)[0])


def test_nothing_is_left_behind():
    net = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Dropout(.5), torch.nn.Linear(4, 5)).train()
    prompts = torch.zeros(2, 1, dtype=torch.long)
    before = torch.get_rng_state()
    with torch.enable_grad():
        tokens, mask = sample(net.eval(), prompts, 3, torch.full((2, 3), .5))
        assert torch.is_grad_enabled()
    assert torch.equal(before, torch.get_rng_state()) and not net.training
    assert tokens.dtype == torch.long and mask.dtype == torch.bool and torch.equal(prompts, torch.zeros(2, 1).long())


def test_forbidding_renormalises():
    logits = normal(1, 5)
    u = torch.linspace(0, .9999, 2000)[:, None].double()
    prompts = torch.zeros(2000, 1, dtype=torch.long)
    tokens, _ = sample(lambda ids: logits.expand(len(ids), 1, 5), prompts, 1, u, forbidden=(0, 2))
    share = tokens[:, 1].bincount(minlength=5)/2000
    want = torch.where(torch.tensor([0, 1, 0, 1, 1]).bool(), logits[0].exp(), torch.tensor(0.).double())
    assert_close(share.double(), want/want.sum(), rtol=0, atol=1e-3)


def test_the_end_is_drawn_once_and_counts():
    table, prompts = normal(5, 5), torch.arange(5).repeat(40)[:, None]
    tokens, mask = sample(lambda i: table[i], prompts, 8, eos=3, pad=4, generator=torch.Generator().manual_seed(0))
    for row, kept in zip(tokens.tolist(), mask.tolist()):
        new = row[1:]
        length = new.index(3) + 1 if 3 in new else 8
        assert kept == [False] + [True]*length + [False]*(8 - length) and new[length:] == [4]*(8 - length)


def clocks(*shape, seed=0): return torch.empty(*shape, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(seed))


def test_the_race_draws_the_softmax():
    logits = normal(6); logits[2] = -torch.inf
    share = exponential_race(logits.expand(200_000, 6), clocks(200_000, 6)).bincount(minlength=6)/200_000
    assert share[2] == 0 and (share - logits.softmax(-1)).abs().max() < 5e-3
    E = clocks(50, 6, seed=1)
    assert torch.equal(exponential_race(logits.expand(50, 6), E), (E/logits.softmax(-1)).argmin(-1))
    E[:, 2] = 0.                                               # a clock of zero does not revive what cannot be
    assert (exponential_race(logits.expand(50, 6), E) != 2).all()


def test_a_race_is_shared_through_the_generator():
    table, prompts = normal(6, 6), torch.arange(6)[:, None]
    run = lambda table, seed: sample(lambda i: table[i], prompts, 9, coupling="race", generator=torch.Generator().manual_seed(seed))[0]
    assert torch.equal(run(table, 0), run(table + 3., 0)) and not torch.equal(run(table, 0), run(table, 1))
    order = torch.tensor([0, 3, 1, 5, 4, 2])                   # the line's order of ids does not matter to it, but clocks go by id
    assert not torch.equal(run(table, 0), run(table[:, order], 0))


@pytest.mark.parametrize("seed", range(5))
def test_meeting_probability_is_bounded(seed):
    "Eq. 3 on random pairs: between (1−TV)/(1+TV) and 1−TV."
    p, q = normal(2, 8, seed=seed).softmax(-1)
    meet = (1/torch.maximum(p[None]/p[:, None], q[None]/q[:, None]).sum(1)).sum()
    tv = (p - q).abs().sum()/2
    assert (1 - tv)/(1 + tv) <= meet <= 1 - tv
    E = clocks(100_000, 8, seed=seed)
    same = exponential_race(p.log().expand_as(E), E) == exponential_race(q.log().expand_as(E), E)
    assert abs(same.double().mean() - meet) < 7e-3
