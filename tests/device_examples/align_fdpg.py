"Examples for test_devices: fdpg."
from functools import partial

from kullback.align import (
    MovingBaseline,
    PartitionEstimator,
    divergence_estimate,
    fdpg_loss,
    fdpg_pseudo_reward,
    fit_gdc_lambda,
)

NAMES = ("forward_kl", "reverse_kl", "js", "tv", "chi2_p_pi", "chi2_pi_p")


def running(make):
    "The loss with what a loop carries along."
    Z, B, pi, P = PartitionEstimator(), MovingBaseline(8), make.normal(6), make.normal(6).detach()
    def call():
        Z.update(P, pi)
        B.update(P)
        return fdpg_loss(pi, P, Z.log_z, divergence="js", baseline=B.value), Z.log_z, B.value
    return call


def update(make):
    Z, B, P, q = PartitionEstimator(), MovingBaseline(8), make.normal(6).detach(), make.normal(6).detach()
    def call():
        Z.update(P, q)
        B.update(P)
        return Z.log_z, B.value
    return call


EXAMPLES = {
    "fdpg_pseudo_reward": [lambda make, d=d: partial(fdpg_pseudo_reward, make.normal(6), d) for d in NAMES if d != "tv"],
    "fdpg_loss": [lambda make, d=d: partial(fdpg_loss, make.logp(6), make.normal(6), .5, make.logp(6), d, .1) for d in NAMES]
                 + [running],
    "divergence_estimate": [lambda make, k=k: partial(divergence_estimate, make.normal(6), make.logp(6), make.logp(6), .5, k)
                            for k in ("forward_kl", "reverse_kl", "js", "tv")],
    "MovingBaseline": update,
    "PartitionEstimator": update,
    "fit_gdc_lambda": lambda make: partial(fit_gdc_lambda, make.normal(40, 2), make.probs(2) - .5, make.normal(40)),
}
NO_GRADIENT = {"MovingBaseline": "a memory of numbers", "PartitionEstimator": "a memory of numbers",
               "fit_gdc_lambda": "a fitted target, held constant"}
EXEMPT = {}
