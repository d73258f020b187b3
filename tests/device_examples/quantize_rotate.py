"Examples for test_devices: pairs that cancel, activations on a grid."
from functools import partial

from kullback.language import DecoderConfig, DecoderLM
from kullback.quantize import OSTransform, quantized_activations, smooth_scales


def decoder(): return DecoderLM(DecoderConfig(7, 2, 8, 4, n_gqa_groups=2, qkv_multipliers=1., ffn_divisor=8, qk_norm=False))


def merged(make, **options):
    model = decoder()
    transform = OSTransform(model, **options)
    return partial(transform.apply, dict(model.named_parameters()))


def running(make, **options):
    model, ids = decoder(), make.ids(7, 2, 5)

    def call():
        with quantized_activations(model, **options): return model(ids)
    return call


EXAMPLES = {
    "OSTransform": [partial(merged, **how) for how in ({}, dict(start="klt", online=True), dict(start="identity", tied_qk=False))],
    "quantized_activations": [partial(running, **how) for how in (dict(bits=4, kv_bits=4), dict(online=True))],
    "smooth_scales": lambda make: partial(smooth_scales, make.probs(4), make.probs(4)),
}
