"Examples for test_devices: fused."
from functools import partial

from kullback.divergence import linear_cross_entropy, linear_divergence, linear_token_logps

N, D, E, V = 6, 3, 4, 7


def heads(make): return make.normal(N, D), make.normal(V, D), make.normal(N, E), make.normal(V, E)


EXAMPLES = {
    "linear_divergence": [lambda make, name=name, how=how: partial(linear_divergence, *heads(make), name, 2., make.mask(N), how, 4)
                          for name in ("forward_kl", "reverse_kl", "js", "chi2") for how in ("mean", "none")],
    "linear_cross_entropy": lambda make: partial(linear_cross_entropy, *heads(make)[:2], make.ids(V, N), chunk=4),
    "linear_token_logps": lambda make: partial(linear_token_logps, *heads(make)[:2], make.ids(V, N)),
}
