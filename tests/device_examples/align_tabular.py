"Examples for test_devices: tabular policies."
from functools import partial

from kullback.align import TabularPolicy, enumerate_texts, prefix_logits, text_logps, token_values

V, T = 3, 2


def policy(make):
    model = TabularPolicy(V, T)
    ids = make.ids(V, 4, T + 1)
    return lambda: (model(ids), model.logp())


EXAMPLES = {
    "TabularPolicy": policy,
    "enumerate_texts": lambda make: partial(enumerate_texts, V, T, make.ids(V, 1).device),
    "text_logps": lambda make: partial(text_logps, make.normal(1 + V, V), T),
    "prefix_logits": lambda make: partial(prefix_logits, make.normal(V**T), V),
    "token_values": [lambda make, b=b: partial(token_values, make.normal(1 + V, V), make.normal(V**T), b) for b in (None, .5)],
}
NO_GRADIENT = {"enumerate_texts": "ids"}
EXEMPT = {}
