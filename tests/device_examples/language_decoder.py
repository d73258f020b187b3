"Examples for test_devices: decoder."
from functools import partial

from kullback.language import (
    GRULM,
    DecoderConfig,
    DecoderLayer,
    DecoderLM,
    GQAttention,
    RMSNorm,
    SwiGLU,
    logit_z_penalty,
    rope,
)


def lm(**changes):
    return DecoderLM(DecoderConfig(**{**dict(vocab=7, n_layers=2, model_dim=8, head_dim=4, n_gqa_groups=2, ffn_divisor=4,
                                             context=12), **changes}))


def cached(make, model):
    "Two tokens read on behind three."
    state = tuple((make.normal(3, kv, 3, 4), make.normal(3, kv, 3, 4)) for kv in model.config.layer_dims.kv_heads)
    return partial(DecoderLM.step, model, make.ids(7, 3, 2), state)


EXAMPLES = {
    "RMSNorm": lambda make: partial(RMSNorm(6), make.normal(3, 6)),
    "rope": lambda make: partial(rope, make.normal(2, 4, 3, 6), make.normal(2, 2, 3, 6)),
    "GQAttention": [lambda make, norm=norm: partial(GQAttention(8, 4, 2, 4, qk_norm=norm), make.normal(2, 5, 8))
                    for norm in (True, False)],
    "SwiGLU": lambda make: partial(SwiGLU(4, 6), make.normal(3, 4)),
    "DecoderLayer": lambda make: partial(DecoderLayer(8, 4, 2, 4, 6), make.normal(2, 5, 8)),
    "DecoderLM": [lambda make: partial(lm(), make.ids(7, 3, 5)), lambda make: partial(lm(tied=False), make.ids(7, 3, 5)),
                  lambda make: cached(make, lm())],
    "logit_z_penalty": [lambda make: partial(logit_z_penalty, make.normal(3, 5, 7)),
                        lambda make: partial(logit_z_penalty, make.normal(3, 5, 7), make.mask(3, 5))],
    "GRULM": [lambda make: partial(GRULM(7, 4, 5), make.ids(7, 3, 4)),
              lambda make: partial(GRULM.step, GRULM(7, 4, 5), make.ids(7, 3), make.normal(3, 5))],
}
NO_GRADIENT = {}
EXEMPT = {"DecoderConfig": "holds plain numbers", "LayerDims": "holds plain numbers", "count_parameters": "returns a plain number",
          "decoder_parameters": "returns plain numbers", "layerwise_dims": "returns plain numbers",
          "make_divisible": "returns a plain number"}
