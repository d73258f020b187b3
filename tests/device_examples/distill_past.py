"Examples for test_devices: past."
from functools import partial

import torch

from kullback.distill import PSKD, PredictionMemory, pskd_targets


def remember(make):
    memory, labels = PredictionMemory(4, 6), make.ids(6, 4)

    def call():
        memory.init_from_labels(labels)
        memory.update(labels.clamp(max=3), make.probs(4, 6).detach())
        return memory.get(labels.clamp(max=3))
    return call


EXAMPLES = {
    "pskd_targets": lambda make: partial(pskd_targets, make.ids(6, 4), make.normal(4, 6).detach().softmax(-1), .3),
    "PredictionMemory": remember,
    "PSKD": lambda make: partial(PSKD(4, 6, 10).loss, make.normal(4, 6), make.ids(6, 4), torch.arange(4), 0),
}
NO_GRADIENT = {"pskd_targets": "the past is detached", "PredictionMemory": "a buffer"}
EXEMPT = {"pskd_alpha": "returns a plain number"}
