"""What ``gallery.py`` fills in: the markup of a terminal and of the page of all cards."""

import re
from html import escape

from rich.terminal_theme import TerminalTheme

DARK = TerminalTheme(
    (22, 26, 33),
    (222, 227, 234),
    [(72, 80, 92), (255, 123, 114), (126, 214, 147), (236, 190, 98), (111, 174, 247), (205, 153, 255), (98, 212, 218),
     (222, 227, 234)],
    [(122, 132, 146), (255, 160, 152), (160, 232, 176), (250, 214, 130), (150, 198, 255), (224, 184, 255),
     (140, 230, 234), (255, 255, 255)],
)  # fmt: skip
"""Background, text, the eight colours of a terminal and their bright sisters."""

# At a sharpness of 1.5 a cell is 14 pixels wide and 27 high, less than the font wants: blocks meet without a seam.
TERMINAL = """<!doctype html>
<meta charset="utf-8">
<style>
html {{ background: #161a21; }}
body {{ margin: 0; }}
.terminal {{ width: max-content; background: #161a21; color: #dee3ea; }}
.terminal, .terminal pre, .terminal span {{
  font: 15.7px/18px "DejaVu Sans Mono", Menlo, Consolas, monospace; letter-spacing: -0.1189px;
}}
.terminal header {{
  display: flex; gap: 16px; align-items: start; padding: 10px 16px; background: #2a303a; color: #ffffff;
}}
.terminal i {{ display: flex; gap: 8px; padding-top: 3px; }}
.terminal b {{ width: 11px; height: 11px; border-radius: 50%; background: #5a6472; }}
.terminal p {{ width: 0; flex: 1; margin: 0; }}
.terminal header span {{ white-space: nowrap; }}
.terminal pre {{ width: calc({columns} * 9.3333px + 4px); margin: 0; padding: 14px 16px; box-sizing: content-box; }}
.terminal pre {{ white-space: pre-wrap; word-break: break-all; }}
</style>
<div class="terminal">
<header><i><b></b><b></b><b></b></i><p>{title}</p></header>
<pre>{body}</pre>
</div>
"""

PICTURE = '<a href="{page}"><img src="{name}.png" alt="{alt}" {size} loading="lazy"></a>\n'

CARD = """<article id="{name}" aria-labelledby="{name}-title">
<h2 id="{name}-title">{title}</h2>
<p>{answers}</p>
<pre tabindex="0" role="region" aria-label="The command: {title}"><code>{command}</code></pre>
<div class="pictures">
{pictures}</div>
<p><a href="{page}">Open the page of this run: {page}</a></p>
</article>
"""

INDEX = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src 'self'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>moetool in pictures</title>
<style>
:root {{
  color-scheme: light dark;
  --page: light-dark(#f4f6f8, #14171c);
  --card: light-dark(#ffffff, #1e232a);
  --ink: light-dark(#1b1f24, #e4e8ee);
  --quiet: light-dark(#57606a, #9aa5b1);
  --line: light-dark(#d5dae0, #363e48);
  --accent: light-dark(#0b5cad, #7cb8f5);
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }}
header, main {{ max-width: 64rem; margin: 0 auto; padding: 1rem clamp(0.75rem, 3vw, 2rem); }}
h1 {{ margin: 1rem 0 0.5rem; font-size: 2rem; line-height: 1.2; }}
h2 {{ margin: 0; font-size: 1.35rem; }}
header p {{ color: var(--quiet); }}
a {{ color: var(--accent); }}
:focus-visible {{ outline: 3px solid var(--accent); outline-offset: 2px; }}
nav ul {{ display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin: 0; padding: 0; list-style: none; }}
article {{
  margin: 0 0 1.5rem; padding: 1.25rem; background: var(--card); border: 1px solid var(--line); border-radius: 0.6rem;
}}
pre {{
  margin: 0; padding: 0.6rem 0.8rem; overflow-x: auto; white-space: normal; background: #161a21; color: #dee3ea;
  border-radius: 0.4rem; font-size: 0.9rem;
}}
pre span {{ white-space: nowrap; }}
@media (max-width: 40rem) {{ pre span {{ white-space: normal; }} }}
.pictures {{ display: grid; gap: 1rem; margin: 1rem 0; }}
.pictures {{ grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }}
.pictures a {{ justify-self: start; }}
.pictures a:first-child, .pictures a:last-child:nth-child(even) {{ grid-column: 1 / -1; }}
img {{ display: block; max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 0.4rem; }}
</style>
</head>
<body>
<header>
<h1>moetool in pictures</h1>
<p>Every picture is of a real run: <code>python examples/gallery.py</code> runs the commands below and makes this page.
A picture leads to the page that its command saved.</p>
<nav aria-label="Commands"><ul>
{contents}</ul></nav>
</header>
<main>
{cards}</main>
</body>
</html>
"""


def show_command(command: str) -> str:
    """Its markup: lines break between options, not inside them."""
    return " ".join(f"<span>{escape(part)}</span>" for part in re.split(r" (?=--)", command))
