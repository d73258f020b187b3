"Examples for test_devices: preferences."
from functools import partial

from kullback.align import dpo_loss, preference_loss

KINDS = ({}, {"loss_type": "kto_pair"}, {"loss_type": "kto_pair", "detach_kl": True}, {"loss_type": "ipo"}, {"loss_type": "hinge"})


def pairs(make): return [make.normal(5) for _ in range(4)]


EXAMPLES = {
    "dpo_loss": [lambda make, e=e: partial(dpo_loss, *pairs(make), label_smoothing=e) for e in (0., .1)],
    "preference_loss": [lambda make, kw=kw: partial(preference_loss, *pairs(make), **kw) for kw in KINDS],
}
EXEMPT = {"check_reference": "returns nothing"}
