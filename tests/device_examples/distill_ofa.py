"Examples for test_devices: ofa."
from functools import partial

from torch import nn

from kullback.distill import ExitBranches, OFADistiller, TokenExit, dist_loss, ofa_loss, ofa_targets

MAPS, TOKENS = [(4, 8, 8), (8, 4, 4)], [(17, 8), (17, 8)]


class Pair(nn.Module):
    "Two stages of features and their logits."
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        a = self.first(x)
        b = self.second(a)
        return self.head(b), [a, b]


def conv(make): return partial(ExitBranches(MAPS, 6), [make.normal(3, *s) for s in MAPS])


def token(make): return partial(ExitBranches(TOKENS, 6, "token", grid=2, heads=2, class_token=True), [make.normal(3, *s) for s in TOKENS])


def linear(make): return partial(ExitBranches([(4, 8, 8), (9, 6)], 6, "linear"), [make.normal(3, 4, 8, 8), make.normal(3, 9, 6)])


def distiller(make, form):
    net = OFADistiller(Pair(), ExitBranches([(6,), (6,)], 4, "linear"), [1., 1.2, 1.5], (1., 1., .5), form=form)
    return partial(net, make.normal(3, 5), make.normal(3, 4), make.ids(4, 3))


EXAMPLES = {
    "ofa_targets": [lambda make, f=f: partial(ofa_targets, make.normal(4, 6), make.ids(6, 4), 1.5, 2., f) for f in ("code", "paper")],
    "ofa_loss": [lambda make, f=f: partial(ofa_loss, make.normal(4, 6), make.normal(4, 6), make.ids(6, 4), 1.5, 2., f)
                 for f in ("code", "paper")],
    "dist_loss": lambda make: partial(dist_loss, make.normal(4, 6), make.normal(4, 6), 1., 2., 4.),
    "TokenExit": lambda make: partial(TokenExit(16, 8, 1, 12, 6, grid=2, heads=2), make.normal(3, 16, 8)),
    "ExitBranches": [conv, token, linear],
    "OFADistiller": [lambda make, f=f: distiller(make, f) for f in ("code", "paper")],
}
NO_GRADIENT = {"ofa_targets": "what the teacher says is held constant"}
EXEMPT = {}
