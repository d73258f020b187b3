"Examples for test_devices: calibration."
from functools import partial

import torch

from kullback.classify import (
    aurc,
    auroc,
    brier,
    brier_top_label,
    classwise_ece,
    e_aurc,
    ece,
    ks_error,
    mce,
    nll,
    reliability_curve,
    risk_coverage_curve,
)


def with_labels(f, *args): return lambda make: partial(f, make.probs(8, 4), make.ids(4, 8), *args)
def with_pairs(f, *args): return lambda make: partial(f, make.leaf(torch.rand(8)), make.mask(8), *args)


EXAMPLES = {
    "ece": [with_labels(ece), with_pairs(ece, 3, "mass")],
    "mce": [with_labels(mce), with_pairs(mce)],
    "reliability_curve": [with_labels(reliability_curve, 1, k) for k in ("width", "mass")],
    "ks_error": with_pairs(ks_error),
    "brier_top_label": [with_labels(brier_top_label), with_pairs(brier_top_label)],
    "brier": with_labels(brier),
    "nll": with_labels(nll),
    "classwise_ece": with_labels(classwise_ece),
    "auroc": with_pairs(auroc),
    "aurc": [with_labels(aurc), with_pairs(aurc)],
    "e_aurc": [with_labels(e_aurc), with_pairs(e_aurc)],
    "risk_coverage_curve": [with_labels(risk_coverage_curve), with_pairs(risk_coverage_curve)],
}
NO_GRADIENT = dict.fromkeys(("auroc", "aurc", "e_aurc", "risk_coverage_curve"), "depends on the order of confidences only")
EXEMPT = {}
