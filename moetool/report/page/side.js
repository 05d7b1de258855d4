// One text beside its routing: the parts of the page that belong to it, and what they show at a token.

class Side {
  constructor(run, weights, inspect) {
    this.run = run;
    this.weights = weights;
    this.root = document.getElementById("side").content.cloneNode(true).firstElementChild;
    this.find = (selector) => this.root.querySelector(selector);
    this.token = -1;
    this.layer = 0;
    this.cursor = null;
    this.counted = -1;
    this.used = run.layers.map((layer) => new Uint32Array(layer.experts));
    this.root.setAttribute("aria-label", run.name);
    this.find("h2").textContent = run.name === "prompt" ? "Prompt and answer" : "The other prompt and answer";
    this.writeText(inspect);
    this.makeBars();
    this.makeMemory();
    this.watchCanvas(inspect);
  }

  // Once the side is in the document, where it has a width.
  open() {
    this.grid = new Grid(this.find("canvas"), this.run);
  }

  writeText(inspect) {
    const { run } = this;
    const box = this.find(".text");
    box.setAttribute("aria-label", "Text by token, in the colours of each token's first expert");
    this.spans = run.texts.map((text, token) => {
      const span = document.createElement("span");
      span.className = "token future";
      span.classList.toggle("prompt", token < run.promptTokens);
      span.classList.toggle("special", run.special[token] === 1);
      span.textContent = text || "◌";
      box.append(span);
      return span;
    });
    const over = (event) => this.spans.indexOf(event.target.closest(".token"));
    box.addEventListener("click", (event) => over(event) >= 0 && inspect({ token: over(event) }));
    box.addEventListener("mouseover", (event) => over(event) >= 0 && this.point(over(event)));
    box.addEventListener("mouseleave", () => this.say(this.token));
  }

  makeBars() {
    const list = this.find("ol");
    const most = Math.max(...this.run.layers.map((layer) => layer.perToken + layer.refusedCount));
    this.bars = Array.from({ length: most }, () => {
      const item = document.createElement("li");
      const [name, track, numbers] = ["span", "span", "span"].map((tag) => item.appendChild(document.createElement(tag)));
      track.className = "track";
      track.setAttribute("aria-hidden", "true");
      const fill = track.appendChild(document.createElement("span"));
      fill.className = "fill";
      list.append(item);
      return { item, name, fill, numbers };
    });
  }

  makeMemory() {
    const list = this.find("dl");
    const names = ["Loaded", "Active per token", "Touched so far", "Experts used"];
    if (this.run.hits) names.push("Cache hits so far");
    this.memory = Object.fromEntries(
      names.map((name) => {
        const term = list.appendChild(document.createElement("dt"));
        term.textContent = name;
        const detail = list.appendChild(document.createElement("dd"));
        const words = detail.appendChild(document.createElement("div"));
        const track = detail.appendChild(document.createElement("div"));
        track.className = "track";
        track.setAttribute("aria-hidden", "true");
        const fill = track.appendChild(document.createElement("span"));
        fill.className = "fill";
        return [name, { words, fill }];
      }),
    );
  }

  watchCanvas(inspect) {
    const canvas = this.find("canvas");
    const move = (cursor) => {
      this.cursor = cursor;
      this.drawGrid();
      this.sayCell();
    };
    const step = (cursor) => {
      this.grid.reveal(cursor.expert);
      move(cursor);
    };
    canvas.setAttribute("aria-label", "Experts by layer. Arrow keys move, Enter selects the layer.");
    canvas.addEventListener("mousemove", (event) => move(this.grid.at(event.offsetX, event.offsetY)));
    canvas.addEventListener("mouseleave", () => move(null));
    canvas.addEventListener("blur", () => move(null));
    canvas.addEventListener("focus", () => {
      if (canvas.matches(":focus-visible")) move({ row: this.layer, expert: this.first(this.token) });
    });
    canvas.addEventListener("click", () => this.cursor && inspect({ layer: this.cursor.row }));
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
      if (event.key === "Enter" && this.cursor) inspect({ layer: this.cursor.row });
      else if (!(event.key in steps)) return;
      else {
        const at = this.cursor || { row: this.layer, expert: 0 };
        const row = Math.min(Math.max(at.row + steps[event.key][0], 0), this.run.layers.length - 1);
        const last = this.run.layers[row].experts - 1;
        step({ row, expert: Math.min(Math.max(at.expert + steps[event.key][1], 0), last) });
      }
      event.preventDefault();
      event.stopPropagation();
    });
  }

  first(token) {
    const layer = this.run.layers[this.layer];
    return layer.chosen[token * layer.perToken];
  }

  show(position, layer, mode) {
    const before = this.token;
    const token = Math.min(position, this.run.tokens - 1);
    if (layer !== this.layer || before < 0) {
      this.layer = layer;
      this.spans.forEach((span, place) => tint(span, this.first(place)));
    }
    for (let place = Math.min(before, token) + 1; place <= Math.max(before, token); place += 1) {
      this.spans[place].classList.toggle("future", place > token);
    }
    if (before >= 0) this.spans[before].classList.remove("current");
    this.spans[token].classList.add("current");
    this.token = token;
    this.mode = mode;
    this.count(token);
    this.follow();
    this.say(token);
    this.drawGrid();
    this.sayCell();
    this.showBars();
    this.showMemory();
  }

  // Keep the current token in sight, without moving the page.
  follow() {
    const box = this.find(".text");
    const span = this.spans[this.token];
    const top = span.offsetTop - box.offsetTop;
    if (top < box.scrollTop || top + span.offsetHeight > box.scrollTop + box.clientHeight) {
      box.scrollTop = top - box.clientHeight / 2;
    }
  }

  // Bring the use of every expert to a token, from wherever it stands.
  count(token) {
    const add = (place, amount) =>
      this.run.layers.forEach((layer, row) => {
        for (const { expert } of choices(layer, place)) this.used[row][expert] += amount;
      });
    for (; this.counted < token; this.counted += 1) add(this.counted + 1, 1);
    for (; this.counted > token; this.counted -= 1) add(this.counted, -1);
  }

  // Colours repeat, so a token has the numbers of its experts too.
  point(token) {
    const layer = this.run.layers[this.layer];
    const experts = choices(layer, token).map((one) => one.expert);
    this.spans[token].title = `token ${token}: expert ${experts.join(", ")} of layer ${layerName(layer)}`;
    this.say(token);
  }

  say(token) {
    const { run } = this;
    const text = document.createElement("bdi");
    text.textContent = `“${run.texts[token]}”`;
    const kind = token < run.promptTokens ? "of the prompt" : "written";
    const likely = share(run.probability[token]);
    const words = likely === null ? "" : `, which the model gave a probability of ${percent(likely)}`;
    const router = describeRouter(run.layers[this.layer], token);
    this.find(".now").replaceChildren(`Token ${token}, `, text, ` ${kind}${words}. ${router}`);
  }

  drawGrid() {
    this.grid.draw(this.token, this.layer, this.mode === "use" ? this.used : null, this.cursor);
  }

  sayCell() {
    const fuller = this.mode === "use" ? "more use" : "more weight";
    const legend = `Rows are layers, columns experts; a fuller colour is ${fuller}. Point at a cell, or move there with the keys.`;
    this.find(".cell").textContent = this.cursor ? this.describeCell(this.cursor) : legend;
  }

  describeCell({ row, expert }) {
    const layer = this.run.layers[row];
    const chosen = choices(layer, this.token).find((one) => one.expert === expert);
    const refused = refusals(layer, this.token).find((one) => one.expert === expert);
    let state = "not chosen";
    if (chosen) state = `chosen with ${percent(chosen.weight)} of the weight`;
    const given = chosen ? chosen.given : refused ? refused.given : null;
    if (given !== null) state += `, probability ${percent(given)}`;
    const times = this.used[row][expert];
    return `Layer ${layerName(layer)}, expert ${expert}: ${state}; used by ${times} of ${this.token + 1} tokens so far.`;
  }

  showBars() {
    const layer = this.run.layers[this.layer];
    const chosen = choices(layer, this.token);
    const rows = [...chosen, ...refusals(layer, this.token)];
    const size = (one) => (one.given === null ? one.weight || 0 : one.given);
    const most = Math.max(...rows.map(size)) || 1;
    this.find(".router h3").textContent = `Router of layer ${layerName(layer)}: probabilities, the longest bar ${percent(most)}`;
    this.bars.forEach(({ item, name, fill, numbers }, place) => {
      item.hidden = place >= rows.length;
      if (item.hidden) return;
      const one = rows[place];
      const lit = place < chosen.length;
      item.className = lit ? "chosen" : "refused";
      tint(item, one.expert);
      name.textContent = `Expert ${one.expert}`;
      fill.style.width = `${(100 * size(one)) / most}%`;
      const weight = document.createElement("span");
      weight.className = "share";
      weight.textContent = lit ? `, ${percent(one.weight)} weight` : "";
      numbers.replaceChildren(one.given === null ? "unknown" : percent(one.given), weight);
    });
    const others = layer.experts - rows.length;
    this.find(".others").textContent = others ? `${count(others)} more experts` : "";
  }

  showMemory() {
    const { weights, run } = this;
    const computing = run.layers.map((layer, row) => this.used[row].subarray(0, layer.computing));
    const distinct = computing.map((used) => used.reduce((sum, times) => sum + (times > 0), 0));
    const put = (name, part, words) => {
      this.memory[name].words.textContent = words;
      this.memory[name].fill.style.width = `${100 * (part || 0)}%`;
    };
    const active = weights.active_share;
    const touched = run.layers.reduce(
      (sum, layer, row) => sum + (weights.routed_share[row] * (distinct[row] - layer.perToken)) / layer.computing,
      active,
    );
    const sized = (part) => (active === null ? "unknown" : `${percent(part)}, about ${bytes(part * weights.loaded_bytes)}`);
    const every = run.layers.reduce((sum, layer) => sum + layer.computing, 0);
    const used = distinct.reduce((sum, number) => sum + number, 0);
    put("Loaded", 1, `${bytes(weights.loaded_bytes)}, ${count(weights.parameters)} parameters`);
    put("Active per token", active, sized(active));
    put("Touched so far", active === null ? 0 : touched, sized(touched));
    put("Experts used", used / every, `${count(used)} of ${count(every)} in all layers`);
    if (!run.hits) return;
    const hits = share(run.hits[this.token]);
    put("Cache hits so far", hits, hits === null ? "none yet" : `${percent(hits)}, with ${page.cache} experts a layer`);
  }
}
