"Examples for test_devices: parametrisations."
from functools import partial

from torch import nn

from kullback.language import DecoderConfig, DecoderLM, LayerDims
from kullback.nas import Choices, Entangled, EntangledDecoder, EntangledGain, entangle_, slice_mask


def mixed(module, choices, alphas, *args):
    def call():
        with choices.mixing(alphas): return module(*args)
    return call


def parameter(kind):
    def builder(make):
        choices = Choices(width=(2, 4))
        masks = {"width": slice_mask((2, 4))[:, None]}
        alphas = dict(width=make.probs(2))

        def call():
            with choices.mixing(alphas): return kind(choices, masks)(weight)
        weight = make.normal(3, 4) if kind is Entangled else make.normal(4)
        if kind is EntangledGain: masks = {"width": slice_mask((2, 4))}
        return call
    return builder


def attention(make):
    choices = Choices(width=(4, 8))
    module = entangle_(nn.Linear(8, 24), "weight", choices, out="width", inp="width", parts=3)
    return mixed(module, choices, dict(width=make.probs(2)), make.normal(2, 8))


def decoder(**how):
    def builder(make):
        model = DecoderLM(DecoderConfig(7, 2, 8, 4, context=12, dims=LayerDims([4]*2, [2]*2, [12]*2)))
        net = EntangledDecoder(model, embed=(4, 8), ffn=(6, 12), heads=(2, 4), depth=(1, 2), **how)
        return partial(net, make.ids(7, 2, 5), {name: make.probs(2) for name in net.choices})
    return builder


EXAMPLES = {
    "Choices": attention,
    "Entangled": parameter(Entangled),
    "EntangledGain": parameter(EntangledGain),
    "entangle_": attention,
    "EntangledDecoder": [decoder(), decoder(norm="full", layerwise=True)],
}
NO_GRADIENT = {}
EXEMPT = {"sliced_state": "how many numbers a slice holds is read off its mask"}
