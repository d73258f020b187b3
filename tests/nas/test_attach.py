"Entangled parameters of modules that know nothing of it: facts."
import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from kullback.language import DecoderConfig, DecoderLM, LayerDims, count_parameters
from kullback.nas import Choices, EntangledDecoder, entangle_, sliced_state

SPACE = dict(embed=(4, 6, 8), ffn=(4, 12), heads=(2, 4), depth=(1, 2, 3))


def draw(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a, b): assert_close(a, b, rtol=0, atol=1e-11)


def corner(choices, choice): return {n: torch.eye(len(s)).double()[s.index(choice[n])] for n, s in choices.items()}


def decoder(seed=0, **how):
    model = DecoderLM(DecoderConfig(11, 3, 8, 4, context=16, dims=LayerDims([4]*3, [2]*3, [12]*3))).double()
    for i, p in enumerate(model.parameters()): p.data = .3*draw(*p.shape, seed=seed + i)
    return EntangledDecoder(model, **how)


@pytest.mark.parametrize("norm", ["slice", "full"])
@pytest.mark.parametrize("layerwise", [True, False])
def test_every_tenth_corner_is_cut_out_exactly(norm, layerwise):
    "Values, gradients and what a step of descent leaves."
    net, ids = decoder(norm=norm, layerwise=layerwise, **SPACE), torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(1))
    for sizes in list(itertools.product(*net.choices.values()))[::97 if layerwise else 5]:
        choice = dict(zip(net.choices, sizes))
        small, y = net.derive(choice), net(ids, corner(net.choices, choice))
        close(y, small(ids))
        net.zero_grad()
        y.sin().sum().backward(); small(ids).sin().sum().backward()
        ours, theirs = (sum(p.grad.square().sum() for n, p in m.named_parameters() if p.grad is not None and "norm" not in n)
                        for m in (net, small))
        close(ours, theirs)


def test_one_choice_at_a_time_leaves_the_rest_whole():
    ids = torch.arange(5)[None]
    for name, sizes in SPACE.items():
        net = decoder(**{name: sizes})
        small = net.derive({name: sizes[0]})
        close(net(ids, corner(net.choices, {name: sizes[0]})), small(ids))
        close(net.derive({name: sizes[-1]})(ids), net.model(ids))
        assert count_parameters(small) < count_parameters(net.model)


def test_a_copy_mixes_by_itself():
    net, ids = decoder(**SPACE), torch.arange(5)[None]
    other, alphas = copy.deepcopy(net), {n: draw(len(s), seed=5).softmax(0) for n, s in SPACE.items()}
    before = other(ids, alphas)
    for p in net.parameters(): p.data.zero_()
    close(other(ids, alphas), before)
    assert net(ids, alphas).abs().max() == 0


def test_a_supernet_is_saved_and_loaded():
    net, other, ids = decoder(**SPACE), decoder(seed=100, **SPACE), torch.arange(5)[None]
    other.load_state_dict(net.state_dict())
    choice = dict(embed=6, ffn=4, heads=2, depth=2)
    close(other.derive(choice)(ids), net.derive(choice)(ids))
    assert not any("masks" in name for name in net.state_dict())


def test_an_error_inside_leaves_nothing_mixed():
    net, ids = decoder(**SPACE), torch.arange(5)[None]
    whole = net.model(ids)
    with pytest.raises(ValueError, match="0..10, got 99"): net(ids*0 + 99, corner(net.choices, dict(embed=4, ffn=4, heads=2, depth=1)))
    assert torch.equal(net.model(ids), whole) and net.mixer.now is None and net.mixer.seen == {}


def test_convolutions_in_one_dimension_and_batches_of_slices():
    choices = Choices(c=(2, 4), k=(1, 3))
    conv = entangle_(nn.Conv1d(3, 4, 3, padding=1, bias=False).double(), "weight", choices, out="c", kernel="k")
    x = draw(2, 3, 7)
    for c, k in itertools.product((2, 4), (1, 3)):
        w = sliced_state(conv, dict(c=c, k=k))["weight"]
        assert w.shape == (c, 3, k)
        with choices.mixing(corner(choices.sizes, dict(c=c, k=k))): y = conv(x)
        close(y, F.pad(F.conv1d(x, w, padding=k//2), (0, 0, 0, 4 - c)))


def test_a_joint_choice_is_the_sum_of_its_slices():
    "Rows and columns by one name: Σ α_i of leading squares, no product of sums."
    choices, alpha = Choices(w=(2, 3, 5)), draw(3).softmax(0)
    linear = entangle_(nn.Linear(5, 5, bias=False).double(), "weight", choices, out="w", inp="w")
    W = linear.weight.detach()
    with choices.mixing(dict(w=alpha)): mixed = linear.weight
    close(mixed, sum(a*F.pad(W[:n, :n], (0, 5 - n, 0, 5 - n)) for a, n in zip(alpha, (2, 3, 5))))
