"Examples for test_devices: vocabulary."
from functools import partial

from kullback.align import linear_preference_terms, linear_sequence_logps, linear_sequential_kl

B, T, D, E, V = 3, 4, 3, 5, 7


def labels(make): return make.ids(V, B, T).masked_fill(~make.mask(B, T), -100)


EXAMPLES = {
    "linear_sequence_logps": [
        lambda make, a=a: partial(linear_sequence_logps, make.normal(B, T, D), make.normal(V, D), labels(make), average=a)
        for a in (False, True)],
    "linear_sequential_kl": [
        lambda make, d=d: partial(linear_sequential_kl, make.normal(B, T, D), make.normal(V, D), make.normal(B, T, E),
                                  make.normal(V, E), labels(make), d, chunk=4) for d in ("forward", "reverse")],
}
EXAMPLES["linear_preference_terms"] = [
    lambda make, d=d: partial(linear_preference_terms, make.normal(B, T, D), make.normal(V, D), make.normal(B, T, E),
                              make.normal(V, E), labels(make), d, chunk=4) for d in ("forward", "reverse")]
