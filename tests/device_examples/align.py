"Examples for test_devices: preferences."
from functools import partial

from kullback.align import (
    TDPOLoss,
    dpo_loss,
    fdpo_loss,
    fdpo_scores,
    optimal_fpolicy,
    preference_loss,
    tdpo_loss,
)

KINDS = ({}, {"loss_type": "kto_pair"}, {"loss_type": "kto_pair", "detach_kl": True}, {"loss_type": "ipo"}, {"loss_type": "hinge"})

FAMILIES = ("reverse_kl", "forward_kl", "js", "alpha", "hellinger")


def pairs(make): return [make.normal(5) for _ in range(4)]


EXAMPLES = {
    "dpo_loss": [lambda make, e=e: partial(dpo_loss, *pairs(make), label_smoothing=e) for e in (0., .1)],
    "preference_loss": [lambda make, kw=kw: partial(preference_loss, *pairs(make), **kw) for kw in KINDS],
    "fdpo_loss": [lambda make, n=n: partial(fdpo_loss, *pairs(make), .1, n) for n in FAMILIES],
    "fdpo_scores": [lambda make, n=n: partial(fdpo_scores, make.normal(2, 3), n) for n in FAMILIES],
    "optimal_fpolicy": lambda make: partial(optimal_fpolicy, make.probs(6), make.normal(6), .5, "js"),
    "tdpo_loss": [lambda make, v=v: partial(tdpo_loss, *pairs(make), variant=v) for v in ("tdpo1", "tdpo2")],
    "TDPOLoss": [lambda make, v=v: partial(TDPOLoss(variant=v), make.normal(4, 5, 7), make.normal(4, 5, 7),
                                           make.ids(7, 4, 5).masked_fill(~make.mask(4, 5), -100)) for v in ("tdpo1", "tdpo2")],
}
NO_GRADIENT = {"optimal_fpolicy": "found by bisection"}
EXEMPT = {"check_reference": "returns nothing"}
