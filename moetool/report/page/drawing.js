// The grid of layers and experts on a canvas: what one token chose, or how often each expert was used so far.

const MARGIN = { left: 34, top: 18 };

class Grid {
  constructor(canvas, run) {
    this.canvas = canvas;
    this.run = run;
    this.experts = Math.max(...run.layers.map((layer) => layer.experts));
    this.resize();
  }

  resize() {
    const wide = this.canvas.parentElement.clientWidth - MARGIN.left - 2;
    const rows = this.run.layers.length;
    this.cell = Math.max(4, Math.min(200, Math.floor(wide / this.experts)));
    this.row = rows <= 8 ? 32 : rows <= 16 ? 22 : rows <= 40 ? 13 : 8;
    const width = MARGIN.left + this.cell * this.experts + 2;
    const height = MARGIN.top + this.row * rows + 2;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    this.paper = this.canvas.getContext("2d");
    this.paper.setTransform(ratio, 0, 0, ratio, 0, 0);
    const style = getComputedStyle(this.canvas);
    this.colors = Object.fromEntries(
      ["--panel", "--ink", "--quiet", "--idle"].map((name) => [name, style.getPropertyValue(name)]),
    );
    const [light, step, chroma] = ["light", "step", "chroma"].map((name) => Number(style.getPropertyValue(`--lit-${name}`)));
    this.lit = page.palette.map(([hue, shade]) => `oklch(${light + step * shade} ${chroma} ${hue})`);
  }

  // Scroll sideways until an expert is in sight.
  reveal(expert) {
    const box = this.canvas.parentElement;
    const [left, right] = [expert, expert + 1].map((place) => MARGIN.left + place * this.cell);
    if (left < box.scrollLeft + MARGIN.left) box.scrollLeft = left - MARGIN.left;
    else if (right > box.scrollLeft + box.clientWidth) box.scrollLeft = right - box.clientWidth;
  }

  // Layer and expert under a point of the canvas; null beside the cells.
  at(x, y) {
    const expert = Math.floor((x - MARGIN.left) / this.cell);
    const row = Math.floor((y - MARGIN.top) / this.row);
    const layer = this.run.layers[row];
    return layer && expert >= 0 && expert < layer.experts ? { row, expert } : null;
  }

  draw(token, selected, used, cursor) {
    const { paper } = this;
    // Painted over: with parts of a canvas that are cleared, Chrome writes a PDF that its own viewer shows empty.
    paper.fillStyle = this.colors["--panel"];
    paper.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.axes(selected);
    this.background();
    if (used) this.drawUse(used, token);
    else this.drawChoices(token);
    paper.globalAlpha = 1;
    paper.strokeStyle = this.colors["--ink"];
    paper.lineWidth = 1.5;
    const wide = this.cell * this.run.layers[selected].experts;
    paper.strokeRect(MARGIN.left - 1, MARGIN.top + selected * this.row - 0.5, wide + 1, this.row);
    if (cursor) {
      paper.lineWidth = 2;
      const left = MARGIN.left + cursor.expert * this.cell;
      paper.strokeRect(left - 1, MARGIN.top + cursor.row * this.row - 1, this.cell + 1, this.row + 1);
    }
  }

  axes(selected) {
    const { paper } = this;
    paper.font = "11px system-ui, sans-serif";
    paper.textBaseline = "middle";
    paper.textAlign = "right";
    const every = Math.ceil(12 / this.row);
    this.run.layers.forEach((layer, row) => {
      if (row % every && row !== selected) return;
      if (row !== selected && Math.abs(row - selected) < every) return;
      paper.fillStyle = this.colors[row === selected ? "--ink" : "--quiet"];
      paper.fillText(layer.layer, MARGIN.left - 6, MARGIN.top + (row + 0.5) * this.row);
    });
    paper.textAlign = "center";
    paper.fillStyle = this.colors["--quiet"];
    const step = [1, 2, 4, 8, 16, 32, 64].find((size) => size * this.cell >= 28) || 128;
    for (let expert = 0; expert < this.experts; expert += step) {
      paper.fillText(expert, MARGIN.left + (expert + 0.5) * this.cell, MARGIN.top / 2);
    }
  }

  background() {
    const { paper, run, cell, row } = this;
    paper.fillStyle = this.colors["--idle"];
    run.layers.forEach((layer, place) => {
      paper.fillRect(MARGIN.left, MARGIN.top + place * row, cell * layer.experts, row - 1);
    });
    paper.fillStyle = this.colors["--panel"];
    for (let expert = 1; expert <= this.experts; expert += 1) {
      paper.fillRect(MARGIN.left + expert * cell - 1, MARGIN.top, 1, row * run.layers.length);
    }
  }

  fill(row, expert) {
    const left = MARGIN.left + expert * this.cell;
    this.paper.fillRect(left, MARGIN.top + row * this.row, this.cell - 1, this.row - 1);
  }

  light(expert) {
    this.paper.fillStyle = this.lit[expert];
  }

  drawChoices(token) {
    this.run.layers.forEach((layer, row) => {
      const found = choices(layer, token);
      const most = found[0].weight || 1;
      for (const { expert, weight } of found) {
        this.light(expert);
        this.paper.globalAlpha = 0.3 + (0.7 * weight) / most;
        this.fill(row, expert);
      }
    });
  }

  // By expert, as a colour takes longer to set than to use.
  drawUse(used, token) {
    for (let expert = 0; expert < this.experts; expert += 1) {
      this.light(expert);
      used.forEach((times, row) => {
        if (!times[expert]) return;
        this.paper.globalAlpha = 0.15 + 0.85 * Math.sqrt(times[expert] / (token + 1));
        this.fill(row, expert);
      });
    }
  }
}
