// map: channels of one layer on the two axes, stage beside stage, with a thumbnail per layer to choose by.
const MAP = { x: "capture", y: "relevance", color: "overlap", same: true };

function startMap(root) {
  const frame = DATA.frames.channels;
  const sites = unique(frame.data.site);
  const rows = new Map(sites.map((site) => [site, []]));
  frame.data.site.forEach((site, row) => rows.get(site).push(row));
  const stages = frame.data.stage ? DATA.stages.filter((stage) => frame.data.stage.includes(stage)) : [""];
  const known = (which) => Object.keys(QUANTITIES).filter((name) => frame.columns[name] && (!which || QUANTITIES[name].axis === which));
  STATE.site = sites[Math.floor(sites.length / 2)];
  for (const [slot, which] of [["x", "local"], ["y", "target"], ["color", ""]]) if (!frame.columns[MAP[slot]]) MAP[slot] = known(which)[0] ?? known()[0];

  const chooser = (label, slot, names, extra = []) => {
    const box = make("select", { onchange: () => ((MAP[slot] = box.value), all()) });
    for (const [group, words] of [["local", "local axis"], ["target", "target axis"]]) {
      const options = names.filter((name) => QUANTITIES[name].axis === group).map((name) => make("option", { value: name, textContent: title(name) }));
      if (options.length) box.append(make("optgroup", { label: words }, ...options));
    }
    box.append(...extra);
    box.value = MAP[slot];
    return make("label", {}, label, box);
  };
  const layers = make("select", { id: "layer", onchange: () => select(layers.value) }, ...sites.map((site) => make("option", { value: site, textContent: site })));
  const step = (by) => select(sites[Math.min(sites.length - 1, Math.max(0, sites.indexOf(STATE.site) + by))]);
  const before = make("button", { type: "button", textContent: "‹", "aria-label": "Layer before", onclick: () => step(-1) });
  const after = make("button", { type: "button", textContent: "›", "aria-label": "Layer after", onclick: () => step(1) });
  const same = make("input", { type: "checkbox", checked: true, onchange: () => ((MAP.same = same.checked), all()) });
  const colors = make("span", { className: "colors", "aria-hidden": "true" });
  root.append(make("div", { className: "controls" }, make("label", {}, "layer", make("span", { className: "steps" }, before, layers, after)),
    chooser("across", "x", known()), chooser("up", "y", known()), chooser("color", "color", known(), [make("option", { value: "", textContent: "none" })]), colors,
    stages.length > 1 ? make("label", { className: "check" }, same, "same scales") : null));

  const thumbs = make("div", { className: "thumbs", role: "group", "aria-label": "Layers" });
  const canvases = new Map();
  for (const site of sites) {
    const canvas = make("canvas", { width: 192, height: 108 });
    const button = make("button", { type: "button", className: "thumb", title: site, "aria-label": `Show ${site}`, onclick: () => select(site) }, canvas, make("span", {}, make("bdi", { textContent: site })));
    canvases.set(site, { canvas, button });
    thumbs.append(button);
    lazily(canvas, () => drawThumb(canvas, frame, rows.get(site).filter((row) => !frame.data.stage || frame.data.stage[row] === stages.at(-1))));
  }
  root.append(thumbs);
  const headline = make("h3");

  const plots = stages.map((stage) => {
    const div = make("div", { className: "plot" }), caption = make("figcaption");
    return { stage, div, caption, figure: make("figure", {}, caption, div) };
  });
  root.append(make("div", { className: "charthead" }, headline, saves("the map", () => saveSvg(plots.map(({ div, stage }) => ({ div, draw: drawMap, label: stage })), `map_${STATE.site}`),
    () => download(frame, rows.get(STATE.site), `map_${STATE.site}`))));
  root.append(make("div", { className: `panels map${plots.length === 1 ? " one" : ""}` }, ...plots.map((plot) => plot.figure)));
  const note = make("p", { className: "caption" });
  root.append(note);

  function drawMap() {
    const here = rows.get(STATE.site);
    headline.textContent = `Channels of ${STATE.site}`;
    const wide = new Map(["x", "y"].map((slot) => [slot, extent(here.map((row) => frame.data[MAP[slot]][row]))]));
    const tint = MAP.color ? extent(here.map((row) => frame.data[MAP.color][row])) : null;
    plots.forEach((plot) => {
      const own = here.filter((row) => !frame.data.stage || frame.data.stage[row] === plot.stage);
      const narrow = new Map(["x", "y"].map((slot) => [slot, extent(own.map((row) => frame.data[MAP[slot]][row]))]));
      drawStage(plot, frame, own, MAP.same ? wide : narrow, tint);
    });
    layers.value = STATE.site;
    before.disabled = STATE.site === sites[0];
    after.disabled = STATE.site === sites.at(-1);
    const digits = MAP.color ? frame.columns[MAP.color].digits ?? 3 : 0;
    colors.replaceChildren(...(tint ? [shown(tint[0], digits), make("i"), shown(tint[1], digits)] : []));
    for (const [site, { button }] of canvases) button.setAttribute("aria-pressed", String(site === STATE.site));
    const { button } = canvases.get(STATE.site);
    const above = button.offsetTop - thumbs.offsetTop;
    if (above < thumbs.scrollTop || above + button.offsetHeight > thumbs.scrollTop + thumbs.clientHeight) thumbs.scrollTop = above - thumbs.clientHeight / 2 + button.offsetHeight / 2;
    const odd = here.filter((row) => !Number.isFinite(frame.data[MAP.x][row]) || !Number.isFinite(frame.data[MAP.y][row]));
    note.textContent = `Dotted lines are the layer's medians. ${odd.length ? `${plural(odd.length, "points")} at the edge, outside the dashed lines, ${odd.length === 1 ? "is" : "are"} infinite (triangle) or undefined (cross); the table says why.` : ""}`;
  }
  const entry = { element: root, draw: drawMap, done: false };
  const all = () => { drawMap(); for (const each of DRAWN) if (each.element.tagName === "CANVAS" && each.done) each.draw(); };
  on("site", drawMap);
  on("pins", all);
  DRAWN.push(entry);
  WATCH.observe(root);
}

// smallest and largest finite value
function extent(values) {
  const finite = values.filter(Number.isFinite);
  if (!finite.length) return [0, 1];
  const low = finite.reduce((a, b) => Math.min(a, b)), high = finite.reduce((a, b) => Math.max(a, b));
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

const median = (values) => {
  const sorted = values.filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
  return sorted.length ? (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2 : NaN;
};

// where a value is drawn: infinite and undefined ones have a lane of their own beyond the finite ones
function placed(values, [low, high]) {
  const room = high - low;
  return values.map((value) => (value === Infinity ? high + 0.13 * room : Number.isFinite(value) ? value : low - 0.13 * room));
}

function lanes(values, [low, high]) {
  const room = high - low;
  const endless = values.includes(Infinity), missing = values.some((value) => Number.isNaN(value) || value === -Infinity);
  return { range: [low - (missing ? 0.2 : 0.07) * room, high + (endless ? 0.2 : 0.07) * room], endless: endless ? high + 0.065 * room : null, missing: missing ? low - 0.065 * room : null };
}

function drawStage({ stage, div, caption }, frame, rows, ends, tint) {
  const value = (slot) => rows.map((row) => frame.data[MAP[slot]][row]);
  const [xs, ys] = [value("x"), value("y")];
  const x = lanes(xs, ends.get("x")), y = lanes(ys, ends.get("y"));
  const shades = tint ? value("color").map((shade) => Math.min(Math.max(Number.isNaN(shade) ? tint[0] : shade, tint[0]), tint[1])) : css("--after");
  const symbol = rows.map((_, i) => (Number.isNaN(xs[i]) || Number.isNaN(ys[i]) ? "x-thin" : Number.isFinite(xs[i]) && Number.isFinite(ys[i]) ? "circle" : "triangle-up"));
  const many = rows.length > 600;
  const points = { x: placed(xs, ends.get("x")), y: placed(ys, ends.get("y")), mode: "markers", customdata: rows, text: rows.map((row) => told(frame, row)), hovertemplate: "%{text}<extra></extra>",
    marker: { size: many ? 6 : 9, opacity: many ? 0.75 : 0.9, symbol, color: shades, cmin: tint?.[0], cmax: tint?.[1], colorscale: [[0, css("--low")], [1, css("--high")]],
      line: { width: symbol.map((each) => (each === "x-thin" ? 2 : 0.7)), color: symbol.map((each) => (each === "x-thin" ? css("--soft") : css("--faint"))) } } };
  const kept = rows.map((row, i) => [STATE.pins.get(key(frame.data.site[row], frame.data.channel[row])), i]).filter(([each]) => each);
  const rings = { x: kept.map(([, i]) => points.x[i]), y: kept.map(([, i]) => points.y[i]), mode: "markers+text", text: kept.map(([each]) => `<b>${each.letter}</b>`), textposition: "top right", hoverinfo: "skip",
    textfont: { color: css("--pin"), size: 14 }, marker: { size: 17, symbol: "circle-open", color: css("--pin"), line: { width: 2.5, color: css("--pin") } } };
  const line = (more) => ({ type: "line", layer: "below", line: { color: css("--faint"), width: 1, dash: "dot" }, ...more });
  const upright = (at, dash) => line({ yref: "paper", y0: 0, y1: 1, x0: at, x1: at, line: { color: css("--faint"), width: 1, dash } });
  const level = (at, dash) => line({ xref: "paper", x0: 0, x1: 1, y0: at, y1: at, line: { color: css("--faint"), width: 1, dash } });
  const middle = [median(xs), median(ys)];
  const shapes = [];
  if (Number.isFinite(middle[0])) shapes.push(upright(middle[0], "dot"));
  if (Number.isFinite(middle[1])) shapes.push(level(middle[1], "dot"));
  for (const edge of [x.endless, x.missing]) if (edge !== null) shapes.push(upright(edge, "dash"));
  for (const edge of [y.endless, y.missing]) if (edge !== null) shapes.push(level(edge, "dash"));
  const wide = MAP.same ? ends : null;
  Plotly.react(div, [points, rings], layout(axis(named(frame, MAP.x), { range: wide ? lanesOf("x", frame, ends) : x.range }), axis(named(frame, MAP.y), { range: wide ? lanesOf("y", frame, ends) : y.range }), { shapes, ...sized(div), margin: { l: 54, r: 14, t: 10, b: 44 } }), CONFIG);
  if (!div.dataset.live) {
    div.dataset.live = "yes";
    div.on("plotly_click", ({ points: [point] }) => pin(frame.data.site[point.customdata], frame.data.channel[point.customdata]));
  }
  caption.replaceChildren(make("span", { textContent: stage ? `${STATE.site}, ${stage}` : STATE.site }), make("small", { textContent: correlation(stage, rows.length) }));
}

// with the same scales at every stage, both stages need the lanes that either needs
function lanesOf(slot, frame, ends) {
  const here = frame.data.site.map((site, row) => (site === STATE.site ? row : -1)).filter((row) => row >= 0);
  return lanes(here.map((row) => frame.data[MAP[slot]][row]), ends.get(slot)).range;
}

function told(frame, row) {
  const lines = [`<b>${escaped(frame.data.site[row])}</b>, channel ${frame.data.channel[row]}`];
  for (const name of Object.keys(QUANTITIES).filter((each) => frame.columns[each])) lines.push(`${escaped(named(frame, name))}: ${withInterval(frame, name, row)}`);
  if (frame.data.note?.[row]) lines.push(escaped(frame.data.note[row]));
  return lines.join("<br>");
}

// the layer's rank correlation of the two quantities on show, with interval and n
function correlation(stage, channels) {
  const frame = DATA.frames.alignment;
  if (frame) for (let row = 0; row < frame.length; row++) {
    const d = frame.data;
    if (d.site[row] === STATE.site && d.local[row] === MAP.x && d.target[row] === MAP.y && (!d.stage || d.stage[row] === stage)) {
      return `Spearman ρ ${withInterval(frame, "rho", row, "rho", 2)} (n = ${plural(d.n[row], "channels")})`;
    }
  }
  return plural(channels, "channels");
}

function drawThumb(canvas, frame, rows) {
  const pen = canvas.getContext("2d");
  const [xs, ys] = ["x", "y"].map((slot) => rows.map((row) => frame.data[MAP[slot]][row]));
  const [ex, ey] = [extent(xs), extent(ys)];
  const at = (i) => [8 + (176 * (xs[i] - ex[0])) / (ex[1] - ex[0]), 100 - (92 * (ys[i] - ey[0])) / (ey[1] - ey[0])];
  pen.clearRect(0, 0, 192, 108);
  pen.fillStyle = css("--after");
  pen.globalAlpha = rows.length > 300 ? 0.35 : 0.6;
  rows.forEach((row, i) => { if (Number.isFinite(xs[i]) && Number.isFinite(ys[i])) { pen.beginPath(); pen.arc(...at(i), rows.length > 300 ? 2 : 3, 0, 7); pen.fill(); } });
  pen.globalAlpha = 1;
  pen.fillStyle = css("--pin");
  rows.forEach((row, i) => { if (STATE.pins.has(key(frame.data.site[row], frame.data.channel[row])) && Number.isFinite(xs[i] + ys[i])) { pen.beginPath(); pen.arc(...at(i), 6, 0, 7); pen.fill(); } });
}
