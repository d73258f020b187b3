"Examples for test_devices: judging a policy."
NUMBERS = "returns plain numbers, read off the tensors with .item()"
EXAMPLES, NO_GRADIENT = {}, {}
EXEMPT = {"distinct_ngrams": NUMBERS, "self_overlap": NUMBERS, "win_rate": NUMBERS, "preference_accuracy": NUMBERS,
          "evaluate_policy": NUMBERS, "Frontier": "holds numpy arrays", "frontier": "holds numpy arrays",
          "matched_gain": "returns numpy arrays"}
