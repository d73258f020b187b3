"Examples for test_devices: soup."
from functools import partial

from kullback.align import average_state_dicts

EXAMPLES = {
    "average_state_dicts": lambda make: partial(average_state_dicts, [{"w": make.normal(3, 2)}, {"w": make.normal(3, 2)}], [.3, .7]),
}
NO_GRADIENT = {}
EXEMPT = {"loss_barrier": "returns a plain number", "model_soup": "copies a module, which fake tensors cannot; see test_soup",
          "interpolation_curve": "reads its alphas as numbers; see test_soup"}
