"Examples for test_devices: tokens."
from functools import partial

from kullback.language import (
    masked_mean,
    sequence_logps,
    sequence_nll,
    sequential_kl,
    token_kl,
    token_logps,
    token_stats,
)

B, T, V = 3, 5, 7


def labels(make): return make.ids(V, B, T).masked_fill(~make.mask(B, T), -100)


EXAMPLES = {
    "token_logps": lambda make: partial(token_logps, make.normal(B, T, V), labels(make)),
    "sequence_logps": [lambda make, a=a: partial(sequence_logps, make.normal(B, T, V), labels(make), average=a)
                       for a in (False, True)],
    "token_kl": lambda make: partial(token_kl, make.normal(B, T, V), make.normal(B, T, V), make.mask(B, T)),
    "sequential_kl": [lambda make, d=d: partial(sequential_kl, make.normal(B, T, V), make.normal(B, T, V), labels(make), d)
                      for d in ("forward", "reverse")],
    "sequence_nll": lambda make: partial(sequence_nll, make.normal(B, T, V), make.ids(V, B, T), make.mask(B, T)),
    "token_stats": lambda make: partial(token_stats, make.normal(B, T, V), make.ids(V, B, T)),
    "masked_mean": [lambda make, per=per: partial(masked_mean, make.normal(B, T), make.mask(B, T), per)
                    for per in ("token", "sequence")],
}
NO_GRADIENT = {}
EXEMPT = {}
