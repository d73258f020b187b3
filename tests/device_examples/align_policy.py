"Examples for test_devices: policy."
from functools import partial

from kullback.align import kl_penalised_reward, ppo_clip_loss, rloo_baseline, rloo_loss

EXAMPLES = {
    "rloo_baseline": lambda make: partial(rloo_baseline, make.normal(4, 3)),
    "rloo_loss": lambda make: partial(rloo_loss, make.normal(4, 3), make.normal(4, 3)),
    "kl_penalised_reward": [lambda make, d=d: partial(kl_penalised_reward, make.normal(4), make.normal(4), make.normal(4), .1, d)
                            for d in ("reverse_kl", "js")],
    "ppo_clip_loss": [lambda make: partial(ppo_clip_loss, make.normal(4, 5), make.normal(4, 5), make.normal(4, 5)),
                      lambda make: partial(ppo_clip_loss, make.normal(4, 5), make.normal(4, 5), make.normal(4, 5),
                                           mask=make.mask(4, 5))],
}
NO_GRADIENT = {"kl_penalised_reward": "a reward, detached by definition"}
EXEMPT = {}
