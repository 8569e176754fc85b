// pins: which layer is shown and which channels are kept in view; every plot and table listens.
const STATE = { site: null, pins: new Map(), listeners: { site: [], pins: [] } };
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const key = (site, channel) => `${site} ${channel}`;
const on = (event, listener) => STATE.listeners[event].push(listener);
const tell = (event) => STATE.listeners[event].forEach((listener) => listener());

function select(site) {
  if (STATE.site === site || !DATA.frames.channels?.data.site.includes(site)) return;
  STATE.site = site;
  tell("site");
}

function pin(site, channel) {
  const name = key(site, channel);
  if (STATE.pins.has(name)) STATE.pins.delete(name);
  else {
    const taken = new Set([...STATE.pins.values()].map((each) => each.letter));
    const letter = [...LETTERS].find((each) => !taken.has(each));
    if (!letter) return;
    STATE.pins.set(name, { site, channel, letter });
  }
  tell("pins");
}

// the bar at the corner: one chip per kept channel and, on demand, their numbers side by side, stage by stage
function showPins() {
  const bar = document.getElementById("pins");
  const open = bar.querySelector("details")?.open ?? false;
  bar.hidden = STATE.pins.size === 0;
  const kept = [...STATE.pins.values()];
  const chips = kept.map(({ site, channel, letter }) => make("span", { className: "chip" }, make("b", { textContent: letter }),
    make("a", { href: "#map", title: "Show its layer in the map", textContent: `${site}, channel ${channel}`, onclick: () => select(site) }),
    make("button", { type: "button", textContent: "×", "aria-label": `Let go of ${site}, channel ${channel}`, onclick: () => pin(site, channel) })));
  const clear = make("button", { type: "button", textContent: "Let all go", onclick: () => (STATE.pins.clear(), tell("pins")) });
  const numbers = make("details", { open }, make("summary", { textContent: "Their numbers" }), make("div", { className: "scroll" }, compared(kept)));
  bar.replaceChildren(make("div", { className: "chips" }, ...chips, kept.length > 1 ? clear : null), DATA.frames.channels ? numbers : "");
}

function compared(kept) {
  const frame = DATA.frames.channels;
  if (!frame) return "";
  const rows = kept.flatMap(({ site, channel, letter }) => frame.data.site.flatMap((each, row) => (each === site && frame.data.channel[row] === channel ? [[letter, row]] : [])));
  const heading = ([letter, row]) => make("th", { scope: "col" }, make("b", { textContent: letter }), make("small", { textContent: frame.data.stage?.[row] ?? "" }));
  const line = (name, text) => make("tr", {}, make("th", { scope: "row", textContent: name }), ...rows.map(([, row]) => make("td", { textContent: text(row) })));
  const body = Object.keys(QUANTITIES).filter((name) => frame.columns[name]).map((name) => line(named(frame, name), (row) => withInterval(frame, name, row)));
  if (rows.some(([, row]) => frame.data.note?.[row])) body.push(line("note", (row) => frame.data.note[row]));
  return make("table", {}, make("thead", {}, make("tr", {}, make("td"), ...rows.map(heading))), make("tbody", {}, ...body));
}
on("pins", showPins);
