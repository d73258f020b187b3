"Examples for test_devices: decoder."
from functools import partial

from kullback.language import GRULM


def stepped(make):
    lm = GRULM(7, 4, 5)
    return partial(lm.step, make.ids(7, 3), make.normal(3, 5))


EXAMPLES = {
    "GRULM": [lambda make: partial(GRULM(7, 4, 5), make.ids(7, 3, 4)), stepped],
}
NO_GRADIENT = {}
EXEMPT = {"count_parameters": "returns a plain number"}
