"Examples for test_devices: samplers and searches."
from functools import partial

from kullback.nas import (
    dirichlet_anchor_kl,
    gumbel_hard,
    one_hot_alphas,
    softmax_alpha,
    sparsemax,
)

EXAMPLES = {
    "softmax_alpha": lambda make: partial(softmax_alpha, make.normal(2, 4)),
    "sparsemax": [lambda make, dim=dim: partial(sparsemax, make.normal(3, 4), dim) for dim in (0, -1)],
    "dirichlet_anchor_kl": lambda make: partial(dirichlet_anchor_kl, make.normal(2, 4)),
    "gumbel_hard": lambda make: partial(gumbel_hard, make.normal(2, 4), .5),
    "one_hot_alphas": lambda make: partial(one_hot_alphas, {"a": (1, 2, 4)}, {"a": 2}, make.normal(3)),
}
NO_GRADIENT = {"one_hot_alphas": "a corner, from plain numbers"}
EXEMPT = {"dirichlet_alpha": "PyTorch's Dirichlet draw has no fake kernel; tests/nas/test_samplers.py runs it beside meta",
          "uniform_one_hot": "the generator's device decides; from plain numbers",
          "derived_choice": "plain values", "search_choices": "plain values", "inherited_score": "a number",
          "search_single_stage": "refuses a loss that is not finite: its values are read each epoch",
          "search_spos": "evaluates by values", "SearchResult": "a record", "TabularBenchmark": "plain numbers", "kendall_tau": "a number"}
