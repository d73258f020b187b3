"""Other people's tracers: outputs of pykt-toolkit 0.0.38 and of the released CAKT, stored.

Every weight is .6·sin(1 + i + n): i counts the sorted state_dict of floating tensors (all of them for CAKT), n runs through the
tensor; a running variance gets 1 more. Their code computed these numbers in float64, dropout off; CAKT's with zero initial states,
θ = .3, weights carried over by name, and its embedding's padding row left out. `bench/tracing.py` compares with pykt alive.
"""
import math

import pytest
import torch
from torch.testing import assert_close

from kullback.trace import CAKT, DKT, DKVMN, SAKT

K = 4
C, R = torch.tensor([[0, 2, 2, 1, 3, 2, 0]]), torch.tensor([[1, 0, 1, 1, 0, 1, 0]])


def filled(net):
    net = net.double().eval()
    with torch.no_grad():
        for i, (name, p) in enumerate(sorted(net.state_dict().items())):
            if not p.dtype.is_floating_point or not p.ndim: continue
            p.copy_(.6*torch.sin(1 + i + torch.arange(p.numel(), dtype=torch.float64)).view(p.shape) + name.endswith("running_var"))
    return net


@pytest.mark.parametrize("net, stored", [
    (lambda: DKT(K, 6), [.620811774222, .630305741842, .568664831185, .447838355477, .605907569326, .482611487958]),
    (lambda: DKVMN(K, 6, 3), [.137869447732, .136433511569, .127817180591, .148215513816, .136183522618, .126302815878]),
    (lambda: SAKT(K, 6, 8, 2), [.604728985046, .594789183221, .606853043052, .699189093205, .653386974661, .629408411648]),
    (lambda: SAKT(K, 6, 8, 2, 2), [.820565596733, .820609624846, .814250702961, .821465874025, .820501640423, .799151756914])])
def test_pykt(net, stored):
    p = filled(net())(C[:, :-1], R[:, :-1], C[:, 1:]).sigmoid()
    assert_close(p[0], torch.tensor(stored, dtype=torch.float64), rtol=0, atol=2e-12)


def test_released_cakt():
    net = filled(CAKT(K, 3, 3, "current"))
    with torch.no_grad(): net.raw_decay.fill_(math.log(math.expm1(.3)))
    stored = [.173374017676, -.058107964915, 1.008458172248, .957076560584, -.255068710363, -.147744100286]
    assert_close(net(C[:, :-1], R[:, :-1], C[:, 1:])[0], torch.tensor(stored, dtype=torch.float64), rtol=0, atol=2e-12)
    assert net.curve(net.clips(net.interaction_emb(C + K*R), C, C)[0]).abs().sum() > 1       # the film is not dark: it takes part
