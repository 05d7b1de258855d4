// The whole page: opens the data, and keeps position, layer and playback.

const page = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const state = { position: 0, layer: page.layer, playing: null };
const runs = page.runs.map(openRun);
const longest = Math.max(...runs.map((run) => run.tokens));
const sides = runs.map((run) => new Side(run, page.weights, (change) => go(change)));

function go(change) {
  Object.assign(state, change.token === undefined ? {} : { position: change.token });
  Object.assign(state, change.layer === undefined ? {} : { layer: change.layer });
  state.position = Math.min(Math.max(state.position, 0), longest - 1);
  state.layer = Math.min(Math.max(state.layer, 0), runs[0].layers.length - 1);
  sides.forEach((side) => side.show(state.position, state.layer, at("mode").value));
  at("position").value = state.position;
  at("place").textContent = `${state.position} (0 to ${longest - 1})`;
  at("position").setAttribute("aria-valuetext", at("place").textContent);
  at("layer").value = state.layer;
}

function play(on) {
  clearInterval(state.playing);
  state.playing = null;
  if (on && state.position >= longest - 1) state.position = 0;
  if (on) {
    state.playing = setInterval(() => {
      go({ token: state.position + 1 });
      if (state.position >= longest - 1) play(false);
    }, Number(at("speed").value));
  }
  at("play").textContent = on ? "Pause" : "Play";
  at("play").setAttribute("aria-pressed", String(on));
  document.querySelectorAll(".now").forEach((line) => line.setAttribute("aria-live", on ? "off" : "polite"));
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest("select, input");
  const actions = {
    ArrowLeft: () => go({ token: state.position - 1 }),
    ArrowRight: () => go({ token: state.position + 1 }),
    ArrowUp: () => go({ layer: state.layer - 1 }),
    ArrowDown: () => go({ layer: state.layer + 1 }),
    Home: () => go({ token: 0 }),
    End: () => go({ token: longest - 1 }),
    " ": () => play(state.playing === null),
  };
  const scrolls = /^Arrow(Up|Down)$/.test(event.key) && event.target.closest(".text");
  if (!(event.key in actions) || field || scrolls || (event.key === " " && event.target.closest("button"))) return;
  actions[event.key]();
  event.preventDefault();
}

at("about").textContent =
  `${page.model.family}; ${runs[0].layers.length} layers with experts. ` +
  "A token has the colour of the expert with its largest weight in the selected layer; dotted tokens are the prompt. " +
  "Colours repeat: point at a token for the numbers of its experts.";
at("sides").classList.add(sides.length > 1 ? "two" : "one");
sides.forEach((side) => at("sides").append(side.root));
sides.forEach((side) => side.open());
runs[0].layers.forEach((layer, row) => at("layer").append(new Option(layerName(layer), row)));
at("position").max = longest - 1;
at("position").addEventListener("input", () => go({ token: Number(at("position").value) }));
at("layer").addEventListener("change", () => go({ layer: Number(at("layer").value) }));
at("mode").addEventListener("change", () => go({}));
at("speed").addEventListener("change", () => play(state.playing !== null));
at("first").addEventListener("click", () => go({ token: 0 }));
at("back").addEventListener("click", () => go({ token: state.position - 1 }));
at("play").addEventListener("click", () => play(state.playing === null));
at("forward").addEventListener("click", () => go({ token: state.position + 1 }));
at("last").addEventListener("click", () => go({ token: longest - 1 }));
document.addEventListener("keydown", onKey);
// Paper shows the whole text, and what is folded on a screen.
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((one) => (one.open = true));
  go({ token: longest - 1 });
});
const redraw = () =>
  sides.forEach((side) => {
    side.grid.resize();
    side.drawGrid();
    side.follow();
  });
window.addEventListener("resize", redraw);
for (const media of ["(prefers-color-scheme: dark)", "print"]) matchMedia(media).addEventListener("change", redraw);
go({ token: runs[0].promptTokens - 1 });
