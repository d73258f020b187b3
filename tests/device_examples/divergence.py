"Examples for test_devices: kl, gibbs, decompose, convex."
from functools import partial

from kullback.divergence import (
    bregman,
    effective_sample_size,
    entropy_from_logits,
    fenchel_young,
    gibbs_tilt,
    gumbel_topk,
    jeffreys,
    js_divergence,
    kl_chain,
    kl_from_logits,
    kl_top,
    log_mean_exp,
    log_mixture,
    masked_reduced,
    reduced,
    soft_cross_entropy,
    soft_value,
    split_target,
    target_odds,
)


class HalfSquare:
    "½‖x‖², its own conjugate."
    def value(self, x): return x.square().sum()/2
    def grad(self, x): return x
    def conjugate(self, y): return y.square().sum()/2


EXAMPLES = {
    "reduced": [lambda make, r=r: partial(reduced, make.normal(5), r) for r in ("mean", "sum", "none")],
    "kl_from_logits": lambda make: partial(kl_from_logits, make.normal(4, 6), make.normal(4, 6), 2.),
    "entropy_from_logits": lambda make: partial(entropy_from_logits, make.normal(4, 6)),
    "soft_cross_entropy": lambda make: partial(soft_cross_entropy, make.normal(4, 6), make.probs(4, 6)),
    "js_divergence": lambda make: partial(js_divergence, make.probs(4, 6), make.probs(4, 6)),
    "log_mixture": lambda make: partial(log_mixture, make.logp(4, 6), make.logp(4, 6), .3),
    "kl_top": [lambda make, m=m: partial(kl_top, make.normal(4, 6), make.normal(4, 6), 3, m, mask=make.mask(4))
               for m in ("renormalized", "partial")],
    "masked_reduced": lambda make: partial(masked_reduced, make.normal(4, 6), make.mask(4, 6)),
    "gibbs_tilt": lambda make: partial(gibbs_tilt, make.logp(4, 6), make.normal(4, 6), .5),
    "log_mean_exp": lambda make: partial(log_mean_exp, make.normal(4, 6)),
    "soft_value": [lambda make: partial(soft_value, make.normal(4, 6), .5),
                   lambda make: partial(soft_value, make.normal(4, 6), .5, make.logp(4, 6))],
    "effective_sample_size": lambda make: partial(effective_sample_size, make.normal(4, 6)),
    "gumbel_topk": lambda make: partial(gumbel_topk, make.normal(6), 3),
    "split_target": lambda make: partial(split_target, make.normal(4, 6), make.ids(6, 4)),
    "target_odds": lambda make: partial(target_odds, make.normal(4, 6), make.ids(6, 4)),
    "kl_chain": lambda make: partial(kl_chain, make.normal(4, 6), make.normal(4, 6), make.ids(6, 4)),
    "bregman": lambda make: partial(bregman, HalfSquare(), make.normal(4), make.normal(4)),
    "fenchel_young": lambda make: partial(fenchel_young, HalfSquare(), make.normal(4), make.normal(4)),
    "jeffreys": lambda make: partial(jeffreys, make.probs(4, 6), make.probs(4, 6)),
}
NO_GRADIENT = {"gumbel_topk": "returns indices"}
EXEMPT = {}
