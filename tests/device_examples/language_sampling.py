"Examples for test_devices: sampling."
from functools import partial

import torch

from kullback.language import exponential_race, inverse_cdf, sample, top_p_filter

B, T, V = 3, 5, 7


def uniforms(*shape): return torch.rand(*shape)


def chain(make):
    table = make.normal(V, V)
    return lambda ids: table[ids]


EXAMPLES = {
    "inverse_cdf": lambda make: partial(inverse_cdf, make.normal(B, V), uniforms(B)),
    "exponential_race": lambda make: partial(exponential_race, make.normal(B, V), torch.rand(B, V)),
    "top_p_filter": lambda make: partial(lambda z: top_p_filter(z, .7).exp(), make.normal(B, V)),
    "sample": [lambda make, u=u, how=how: partial(sample, chain(make), make.ids(V, B, 2), T, uniforms(B, T) if u else None,
                                         top_p=.9, forbidden=[1], eos=0, coupling=how)
               for u, how in ((True, "line"), (False, "line"), (False, "race"))],
}
NO_GRADIENT = {"exponential_race": "ids", "inverse_cdf": "ids", "sample": "ids and a mask"}
EXEMPT = {}
