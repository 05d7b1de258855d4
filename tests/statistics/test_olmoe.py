"""Token identity in OLMoE's published counts of token, expert and domain (allenai/OLMoE 357454f)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moetool.statistics.vocabulary import Choices, identity_share

COUNTS = Path(__file__).parents[3] / "shared" / "data" / "routing" / "olmoe_token_expert_counts.npz"
DOMAINS = ("arxiv", "book", "github", "wikipedia")


@pytest.mark.parametrize(
    ("layer", "bits", "share"), [(0, 0.18183, 0.42552), (7, 0.41202, 0.48580), (15, 0.49760, 0.52455)]
)
def test_half_of_the_domain_information_is_token_identity(layer, bits, share):
    """The figures are those of an independent dense computation, hits[domain, token, expert] in one array."""
    if not COUNTS.is_file():
        pytest.skip(f"{COUNTS} is not here: the published routing is not part of the project")
    data = np.load(COUNTS)
    rows = [data[f"{domain}_layer{layer}"] for domain in DOMAINS]
    token, expert, count = np.concatenate(rows).T
    domain = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    choices = Choices(domain, token, expert[:, None], count)
    result = identity_share(choices, choices, 64)
    assert result.information_bits == pytest.approx(bits, abs=1e-5)
    assert result.share == pytest.approx(share, abs=1e-5)
