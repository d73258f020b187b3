"Examples for test_devices: histories, scores, learning curves."
from functools import partial

import torch

from kullback.trace import (
    BKT,
    bkt_curve,
    concept_ids,
    concept_matches,
    interaction_ids,
    learning_curve,
    next_step_loss,
    previous_tries,
    simulate_bkt,
    simulate_irt,
)

B, T, K = 3, 6, 5


def batch(make): return make.ids(K, B, T), make.ids(2, B, T), make.ids(K, B, T), make.mask(B, T)


EXAMPLES = {
    "concept_ids": lambda make: partial(concept_ids, make.ids(K, B, T), K, make.mask(B, T)),
    "interaction_ids": lambda make: partial(interaction_ids, make.ids(K, B, T), make.ids(2, B, T), K, make.mask(B, T)),
    "concept_matches": lambda make: partial(concept_matches, make.ids(K, B, T), make.ids(K, B, T)),
    "previous_tries": lambda make: partial(previous_tries, make.ids(K, B, T)),
    "learning_curve": lambda make: partial(learning_curve, make.ids(K, B, T), make.ids(2, B, T), make.mask(B, T), 3),
    "bkt_curve": lambda make: partial(bkt_curve, *(make.probs(2) for _ in range(4)), 4),
    "simulate_bkt": lambda make: partial(simulate_bkt, make.ids(K, B, T), *(torch.rand(K) for _ in range(4))),
    "simulate_irt": lambda make: partial(simulate_irt, make.ids(K, B, T), torch.randn(B), torch.randn(K), .5),
    "BKT": lambda make: partial(BKT(K), *batch(make)),
    "next_step_loss": [lambda make, m=m: partial(next_step_loss, make.normal(B, T), make.ids(2, B, T), make.mask(B, T) if m else None)
                       for m in (True, False)],
}
NO_GRADIENT = {name: "integers" for name in ("concept_ids", "interaction_ids", "concept_matches", "previous_tries", "simulate_bkt")}
NO_GRADIENT |= {"learning_curve": "counts answers", "simulate_irt": "draws answers"}
EXEMPT = {name: "returns a plain number" for name in ("accuracy", "pooled_auc")}
EXEMPT |= {name: "makes tensors from Python lists or files" for name in
           ("expand_questions", "pad_sequences", "read_pykt_csv", "read_three_line_csv", "renumber", "student_folds", "window_sequences")}
EXEMPT |= {"Batch": "a tuple with names", "chunk_sequences": "slices, on whatever device", "question_rows": "as many rows as the values say",
           "late_fusion": "as many questions as the values say"}
