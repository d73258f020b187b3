"Examples for test_devices: sparse."
from functools import partial

import torch

from kullback.align import TokenMask, activation_mask, masked_token_preference_loss

B, T, H = 3, 5, 4


def weight(make): return make.leaf(torch.rand(B, T))


def plain(make):
    return partial(masked_token_preference_loss, *(make.normal(B, T) for _ in range(4)), make.mask(B, T), make.mask(B, T))


def masked(make):
    return partial(plain(make), weight(make), weight(make), weight(make), weight(make), l1_reward=.1, l1_kl=.2)


EXAMPLES = {
    "masked_token_preference_loss": [plain, masked],
    "TokenMask": [lambda make, init=init: partial(TokenMask(H, 2, init=init), [torch.randn(B, T, H) for _ in range(2)], make.mask(B, T))
                  for init in ("positive", "hf")],
    "activation_mask": lambda make: partial(activation_mask, [make.normal(B, T, H), make.normal(B, T, 2)], make.mask(B, T)),
}
NO_GRADIENT = {"activation_mask": "read off the reference, detached by definition"}
EXEMPT = {}
