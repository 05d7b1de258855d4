"""Pictures of moetool at work: the commands of ``CARDS`` run, and their terminals and pages are photographed.

    python examples/gallery.py [FOLDER] [CARD...]

The folder, ``examples/gallery`` unless another is given, gets ``index.html``, the pictures and the pages that the
commands save; with names of cards only those are made again. It takes two or three minutes on two CPU cores, and wants
Chromium on the path and the Python package ``playwright`` (``pip install 'moetool[test]'``).

A new card is one entry of ``CARDS``. Its command runs in the folder, in a terminal of its own; a picture is lines of
that terminal (``Screen``) or parts of the page that the command saves (``Page``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

from gallery_pictures import Card, Page, Screen, make, open_browser, size_of
from gallery_template import CARD, INDEX, PICTURE, show_command

FOLDER = Path(__file__).parent / "gallery"

CARDS = (
    Card(
        "generate",
        "Watch each token being routed",
        "Which experts write this token, and do other texts wake others? Python keeps one expert of layer 3 busy.",
        'moetool generate demo "Once upon a time" --against "def fibonacci(n):" --layer 3 --max-new-tokens 48'
        " --delay 0.1 --save generate.html",
        (
            Page(
                "generate",
                "Two texts side by side, a story and Python code, each token in the colour of its first expert, above"
                " the experts of the last token in every layer and the router's probabilities.",
                ("main",),
                keys=("End",),
                width=1160,
            ),
            Screen(
                "generate-live",
                "A terminal while the model writes Python: the text in the colours of its experts, the chosen experts"
                " by layer, and what the router of layer 3 gave each.",
                live=True,
            ),
        ),
        with_errors=True,
    ),
    Card(
        "specialize",
        "What the experts know",
        "Which expert prefers which domain, is that more than chance, and does the domain get worse without it?",
        "moetool specialize demo --ablate 1 --save specialize.html",
        (
            Page(
                "specialize",
                "Heatmaps of four layers, domains by experts: the deepest colour is German at expert 6 of layer 3,"
                " chosen 5.3 times as often as on average.",
                ("figure:has-text('Lift per domain')",),
            ),
            Page(
                "specialize-ablation",
                "A heatmap of the rise of the loss: a masked specialist costs its own domain most, above all Python,"
                " German and Chinese.",
                ("figure:has-text('per masked set')",),
            ),
            Page(
                "specialize-documents",
                "A map of 180 documents by their routing alone: the six domains form six groups.",
                ("figure:has-text('A point per group')",),
            ),
        ),
    ),
    Card(
        "route-stats",
        "Where the tokens go",
        "Are the experts evenly used, is any dead, which are chosen together, and which way do tokens take?",
        "moetool route-stats demo --figures --save route-stats.html",
        (
            Page(
                "route-stats",
                "Bars of the load of every expert in four layers, around the line of perfect balance.",
                ("figure:has-text('Load of every expert')",),
            ),
            Page(
                "route-stats-coactivation",
                "Maps of four layers, expert by expert: pairs chosen together more or less than their loads explain.",
                ("figure:has-text('A map per layer')",),
            ),
            Screen(
                "route-stats-terminal",
                "The same report in a terminal: findings, and the load of every expert as bars of characters.",
                (("^moetool", ""), ("^info", "^ *$"), ("^Expert usage", "^ *$")),
            ),
        ),
    ),
    Card(
        "compare",
        "How alike two models route",
        "What does a change do to the routing? In bfloat16 and float32 almost all tokens take the same experts; those"
        " that do not were close calls.",
        "moetool compare demo --other-dtype float32 --save compare.html",
        (
            Page(
                "compare",
                "Findings of a comparison of bfloat16 with float32, above a curve of agreement: it is clearly below one"
                " only for tokens whose experts were a close call.",
                ("#findings", "figure:has-text('by tenth')"),
            ),
        ),
    ),
    Card(
        "memory-cluster",
        "Does it fit on these GPUs?",
        "What does each GPU of this deployment hold, and how much context and batch is there room for?",
        "moetool memory deepseek-v3 --gpus 16 --tp 8 --ep 16 --redundant-experts 32 --gpu-memory h200-141gb --batch 64"
        " --context 8k --save memory-cluster.html",
        (
            Screen(
                "memory-cluster",
                "A terminal: DeepSeek-V3 on 16 GPUs, its parameters, cache and compute, and 62.59 of 126.36 GiB used"
                " on the fullest rank.",
                (("^moetool", "Read per token"), ("Fits", "this context"), ("^GPUs", "^ *$")),
            ),
            Page(
                "memory-dense",
                "Bars: DeepSeek-V3 takes the memory of a dense model of its size and a seventh of its compute.",
                ("figure",),
            ),
        ),
        columns=80,
    ),
    Card(
        "memory-offload",
        "And if it does not fit?",
        "How many GPUs would it take, or which experts must wait on the host, in the words of llama.cpp?",
        "moetool memory gpt-oss-120b --gpu-memory rtx-4090-24gb --context 32k --save memory-offload.html",
        (
            Screen(
                "memory-offload",
                "A terminal: gpt-oss-120b does not fit on one GPU of 24 GB, and fits with the experts of 26 layers on"
                " the host, with the options of llama.cpp that do it.",
                (("^warning", "table"), ("^GPUs", "^ *$"), ("^Experts on the host", "^ *$")),
            ),
        ),
        columns=80,
    ),
    Card(
        "gate",
        "A gate for CI",
        "Did the routing get worse? A failed check is exit code 1, an annotation on GitHub and a failure in JUnit.",
        "moetool route-stats demo --max-tokens 1000 --quiet --format github --save gate.html --save gate.xml"
        ' --fail-if "dead_experts > 0" --fail-if "max_violation > 0.5"',
        (
            Screen(
                "gate",
                "A terminal: annotations for GitHub, the first of them the error that max_violation is above 0.5, and"
                " exit code 1.",
                (("^::error", "check failed"), ("^::notice", "")),
            ),
            Page("gate-checks", "The page's checks: one passed, one failed.", ("#checks",)),
        ),
        columns=110,
        with_errors=True,
        exit_code=1,
    ),
)


def main() -> None:
    """Make the cards that are named, or all, and the index of those that are there."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    names = sys.argv[2:] or [card.name for card in CARDS]
    unknown = set(names) - {card.name for card in CARDS}
    if unknown:
        sys.exit(f"no such card: {', '.join(sorted(unknown))}; there are {', '.join(card.name for card in CARDS)}")
    folder.mkdir(parents=True, exist_ok=True)
    with open_browser() as browser:
        for card in CARDS:
            if card.name in names:
                print(f"$ {card.command}", flush=True)
                make(card, folder, browser)
    there = [card for card in CARDS if all((folder / f"{one.name}.png").exists() for one in card.pictures)]
    (folder / "index.html").write_text(write_index(there, folder), encoding="utf-8")


def write_index(cards: Sequence[Card], folder: Path) -> str:
    """The page of all cards."""
    parts = []
    for card in cards:
        pictures = "".join(
            PICTURE.format(
                page=card.page, name=picture.name, alt=escape(picture.alt), size=size_of(folder, picture.name)
            )
            for picture in card.pictures
        )
        parts.append(
            CARD.format(
                name=card.name,
                title=escape(card.title),
                answers=escape(card.answers),
                command=show_command(card.command),
                page=card.page,
                pictures=pictures,
            )
        )
    contents = "".join(f'<li><a href="#{card.name}">{escape(card.title)}</a></li>\n' for card in cards)
    return INDEX.format(contents=contents, cards="".join(parts))


if __name__ == "__main__":
    main()
