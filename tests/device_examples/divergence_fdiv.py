"Examples for test_devices: fdiv."
from functools import partial

from kullback.divergence import (
    FDivergence,
    f_divergence,
    get_f_divergence,
    renyi_divergence,
    variational_link,
)

NAMES = [("reverse_kl",), ("forward_kl",), ("js",), ("alpha", .3), ("tsallis", .6), ("tsallis", 2.5), ("tv",), ("chi2",),
         ("neyman",), ("hellinger",), ("jeffreys",)]


def everything(d: FDivergence, logratio, p, q):
    "Every entry of a record that computes."
    t = d.f_prime_log(logratio)
    return [d.f(logratio.exp()), t, d.f_second_log(logratio), d.slope_log(logratio), d.f_prime_inv(t), d.conjugate(t),
            d.activation(logratio), d.conjugate_of_activation(logratio), d.terms(p, q), *d.grads(p, q)]


def link(name, alpha, v):
    g, composite = variational_link(name, alpha)
    return g(v), composite(v)



EXAMPLES = {
    "get_f_divergence": [lambda make, case=case: partial(everything, get_f_divergence(*case), make.normal(4, 6),
                                                         make.logp(4, 6), make.logp(4, 6)) for case in NAMES],
    "f_divergence": [lambda make, case=case: partial(f_divergence, make.logp(4, 6), make.logp(4, 6), *case)
                     for case in NAMES],
    "variational_link": [lambda make, case=case: partial(link, *(*case, None)[:2], make.normal(4, 6)) for case in NAMES],
    "renyi_divergence": [lambda make, a=a: partial(renyi_divergence, make.logp(4, 6), make.logp(4, 6), a) for a in (.5, 2.)],
}
NO_GRADIENT = {}
EXEMPT = {"FDivergence": "a record; get_f_divergence's examples call every entry"}
