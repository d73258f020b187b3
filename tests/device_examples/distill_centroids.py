"Examples for test_devices: centroids."
from functools import partial

import torch
from torch import nn

from kullback.distill import CentroidTracker, cmi_surrogate, mcmi_loss


def centres(make): return make.normal(6, 6).detach().softmax(-1)


def follow(make):
    tracker, model, labels = CentroidTracker(6), nn.Linear(5, 6), torch.arange(12) % 6
    x, probs, rows = make.normal(12, 5).detach(), make.probs(4, 6).detach(), make.ids(6, 4)

    def call():
        tracker.fit(model, [(x, labels)])
        tracker.update(probs, rows)
        return tracker.get(rows)
    return call


EXAMPLES = {
    "cmi_surrogate": lambda make: partial(cmi_surrogate, make.normal(4, 6), make.ids(6, 4), centres(make)),
    "mcmi_loss": lambda make: partial(mcmi_loss, make.normal(4, 6), make.ids(6, 4), centres(make), .3),
    "CentroidTracker": follow,
}
NO_GRADIENT = {"CentroidTracker": "buffers"}
EXEMPT = {}
