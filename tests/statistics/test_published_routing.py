"""Published routing of a trained model (ESFT, 26 layers, two tasks) against statistics of an independent script."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moetool.capture.trace import open_trace
from moetool.statistics.layer_tables import expert_rows
from moetool.statistics.registry import layer_row
from moetool.statistics.sample import count_tokens, sample_layers
from tests.statistics.traces import make_trace, save_trace

ROUTING = Path(__file__).parents[3] / "shared" / "data" / "routing"
EXPERTS, MOE_LAYERS = 64, 26

pytestmark = pytest.mark.skipif(not ROUTING.is_dir(), reason="published routing is not here: ../shared/data/routing")


@pytest.mark.parametrize("task", ["law", "intent"])
def test_all_reference_statistics(task: str, tmp_path: Path) -> None:
    arrays = np.load(ROUTING / "esft_law_intent.npz")
    chosen, weight = (np.moveaxis(arrays[f"{task}_{part}"], 1, 0) for part in ("expert_ids", "weights"))
    trace = make_trace(chosen, EXPERTS, lengths=arrays[f"{task}_doc_lengths"].tolist(), weight=weight)
    opened = open_trace(save_trace(trace, tmp_path / task))
    reference = json.loads((ROUTING / "esft_law_intent_reference.json").read_text())["tasks"][task]
    samples = sample_layers(opened, count_tokens(opened))
    compared = 0
    for sample, expected in zip(samples, reference, strict=True):
        row: dict[str, Any] = layer_row(sample)
        share = [expert["slot_share"] for expert in expert_rows(sample)]
        assert expected["layer"] == row["layer"] + 1  # the first layer is dense
        assert row["busiest_expert"] == expected["argmax"]
        assert row["dead"] + row["unobserved"] == expected["zero"]
        close = {
            "max_f": max(share),
            "min_f": min(share),
            "maxvio": row["max_violation"],
            "cv": row["cv"],
            "gini": row["gini"],
            "entropy": row["entropy"],
            "jac_next": row["overlap"],
            "any_next": row["any_repeat"],
            "first_next": row["first_repeat"],
            "topk_mass": row["topk_mass"],
        }
        for key, value in close.items():
            digits = 6 if key.endswith("_f") else 4
            assert value == pytest.approx(expected[key], abs=0.6 * 10**-digits), (row["layer"], key)
            compared += 1
    assert compared == 10 * MOE_LAYERS
