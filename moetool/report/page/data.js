"use strict";

// From the JSON of the page to typed arrays; what a token, a layer and an expert are, in words.

const FULL = 65534;

function unpack(text, type) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new type(bytes.buffer);
}

function openLayer(layer) {
  const ids = layer.experts > 256 ? Uint16Array : Uint8Array;
  const optional = (text, type) => (text === null ? null : unpack(text, type));
  return {
    ...layer,
    chosen: unpack(layer.chosen, ids),
    weight: unpack(layer.weight, Uint16Array),
    given: optional(layer.given, Uint16Array),
    refused: optional(layer.refused, ids),
    refusedGiven: optional(layer.refusedGiven, Uint16Array),
    entropy: optional(layer.entropy, Uint16Array),
    margin: optional(layer.margin, Float32Array),
  };
}

function openRun(run) {
  return {
    ...run,
    tokens: run.texts.length,
    hits: run.hits === null ? null : unpack(run.hits, Uint16Array),
    special: unpack(run.special, Uint8Array),
    probability: unpack(run.probability, Uint16Array),
    layers: run.layers.map(openLayer),
  };
}

function share(value) {
  return value > FULL ? null : value / FULL;
}

function percent(value) {
  if (value === null) return "unknown";
  const hundred = value * 100;
  return `${hundred.toFixed(hundred < 10 ? 1 : 0)}\u00a0%`;
}

function bytes(size) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (size >= 1024 && place < units.length - 1) {
    size /= 1024;
    place += 1;
  }
  return `${size.toFixed(place ? 2 : 0)}\u00a0${units[place]}`;
}

function count(number) {
  return number.toLocaleString("en-US");
}

// Give an element the colour of an expert; the style has its lightness.
function tint(element, expert) {
  const [hue, shade] = page.palette[expert];
  element.style.setProperty("--hue", hue);
  element.style.setProperty("--shade", shade);
}

function layerName(layer) {
  return layer.part ? `${layer.layer} (${layer.part})` : `${layer.layer}`;
}

// The experts that a token chose in a layer, by falling weight.
function choices(layer, token) {
  const found = [];
  for (let place = token * layer.perToken; place < (token + 1) * layer.perToken; place += 1) {
    found.push({
      expert: layer.chosen[place],
      weight: share(layer.weight[place]),
      given: layer.given === null ? null : share(layer.given[place]),
    });
  }
  return found;
}

function refusals(layer, token) {
  const found = [];
  for (let place = token * layer.refusedCount; place < (token + 1) * layer.refusedCount; place += 1) {
    found.push({ expert: layer.refused[place], given: share(layer.refusedGiven[place]) });
  }
  return found;
}

function describeRouter(layer, token) {
  const experts = choices(layer, token).map((one) => `${one.expert} (${percent(one.weight)} of the weight)`);
  let text = `Layer ${layerName(layer)} chose expert${experts.length > 1 ? "s" : ""} ${experts.join(", ")}`;
  if (layer.entropy !== null && share(layer.entropy[token]) !== null) {
    text += `; router entropy ${share(layer.entropy[token]).toFixed(2)} of 1`;
  }
  if (layer.margin !== null && !Number.isNaN(layer.margin[token])) {
    text += `, margin ${layer.margin[token].toPrecision(2)}`;
  }
  return `${text}.`;
}
