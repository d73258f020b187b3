"`language.decoder`: facts that the page would be bored by."
import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.testing import assert_close

from kullback.language import GRULM, count_parameters

EXACT = dict(rtol=0, atol=1e-12)


def gru(V=9, seed=0):
    torch.manual_seed(seed)
    lm = GRULM(V, 4, 6).double()
    return lm, torch.randint(V, (3, 5))


def test_gru_gradients_against_pytorch():
    lm, ids = gru()
    other = nn.GRU(4, 6, batch_first=True).double()
    other.load_state_dict({f"{k}_l0": v for k, v in lm.cell.state_dict().items()})
    weights = torch.randn(3, 5, 9, dtype=torch.float64)
    (lm(ids)*weights).sum().backward()
    mine = {k: p.grad.clone() for k, p in lm.cell.named_parameters()}
    lm.zero_grad()
    (lm.proj(other(lm.embed(ids))[0]) @ lm.embed.weight.T*weights).sum().backward()
    for k, grad in mine.items(): assert_close(grad, getattr(other, f"{k}_l0").grad, **EXACT)


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


@pytest.mark.parametrize("ids, said", [(torch.zeros(3), r"\(3,\)"), (torch.zeros(2, 0).long(), r"\(2, 0\)"),
                                       (torch.zeros(2, 3), "float32"), (torch.tensor([[0, -1]]), "got -1")])
def test_bad_ids_are_refused(ids, said):
    with pytest.raises(ValueError, match=said): gru()[0](ids)


@pytest.mark.parametrize("bad", [dict(vocab=0), dict(vocab=3, emb=-1), dict(vocab=3, hidden=0)])
def test_gru_sizes_are_positive(bad):
    with pytest.raises(ValueError, match=str(min(bad.values()))): GRULM(**bad)


def test_count_of_a_shared_weight():
    a, b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    assert count_parameters(nn.Sequential(a, b)) == 18
    b.weight = a.weight
    assert count_parameters(nn.Sequential(a, b)) == 9
