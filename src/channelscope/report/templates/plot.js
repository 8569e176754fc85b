// plot: the declared charts, drawn when they come into view, in the page's colors.
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const SERIES = ["--s0", "--s1", "--s2", "--s3", "--s4", "--s5", "--s6", "--s7"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "pentagon", "cross", "star"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const NAME_ROOM = 14, LETTER_ROOM = 7; // pixels of an axis for each tilted name, and for each letter of a level one
const CONFIG = { responsive: true, displayModeBar: false, doubleClick: "reset" };
const DRAWN = [];

// a color between two colors written #rrggbb
function blend(from, to, part) {
  const mixed = [1, 3, 5].map((at) => Math.round((1 - part) * parseInt(from.slice(at, at + 2), 16) + part * parseInt(to.slice(at, at + 2), 16)));
  return `#${mixed.map((each) => each.toString(16).padStart(2, "0")).join("")}`;
}

const ordered_values = (all) => all.every((each) => Number.isFinite(Number(each)));

// stages are told apart by time, names by hue, marker and dash, many numbers from light to dark
function style(series, all) {
  const index = all.indexOf(series);
  if (DATA.stages.length > 1 && DATA.stages.includes(series)) {
    const last = series === DATA.stages.at(-1);
    return { color: css(last ? "--after" : "--before"), symbol: last ? "circle" : "circle-open" };
  }
  if (all.length > SERIES.length && ordered_values(all)) return { color: blend(css("--low"), css("--high"), 0.2 + (0.8 * index) / (all.length - 1)), symbol: "circle" };
  const round = Math.floor(index / SERIES.length);
  return { color: css(SERIES[index % SERIES.length]), symbol: SYMBOLS[(index + 3 * round) % SYMBOLS.length], dash: DASHES[round % DASHES.length] };
}

// words in lines of so many pixels
function inLines(text, pixels) {
  const lines = [""], most = Math.max(12, pixels / LETTER_ROOM);
  for (const word of text.split(" ")) {
    if (lines.at(-1) && lines.at(-1).length + word.length >= most) lines.push("");
    lines.push(`${lines.pop()} ${word}`.trim());
  }
  return lines.map(escaped).join("<br>");
}

function axis(text, more = {}, pixels = Infinity) {
  return { title: { text: inLines(text, pixels), font: { size: 12.5 }, standoff: 8 }, gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: true, tickfont: { size: 11.5 }, ...more };
}

function layout(x, y, more = {}) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: getComputedStyle(document.body).fontFamily, color: css("--soft"), size: 12 },
    margin: { l: 50, r: 14, t: 10, b: 40 }, hovermode: "closest", dragmode: "zoom", showlegend: false, xaxis: x, yaxis: y,
    hoverlabel: { bgcolor: css("--paper"), bordercolor: css("--faint"), font: { color: css("--ink"), size: 12.5 }, align: "left" }, ...more,
  };
}

// what a figure measures now; left to Plotly where it is folded away
const sized = (div) => (div.clientWidth ? { width: div.clientWidth, height: div.clientHeight } : {});

// draw now if near the screen, otherwise when it comes near; again when the theme changes
function lazily(element, draw) {
  const entry = { element, draw, done: false };
  DRAWN.push(entry);
  WATCH.observe(element);
}
const WATCH = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) {
    const entry = DRAWN.find((each) => each.element === target);
    if (isIntersecting && entry && !entry.done) { entry.done = true; entry.draw(); }
  }
}, { rootMargin: "400px" });
const PAINTED = []; // legends, whose colors are the theme's too
const redraw = () => [...PAINTED.map((paint) => ({ done: true, draw: paint })), ...DRAWN].filter((each) => each.done).forEach((each) => each.draw());
const drawAll = () => DRAWN.filter((each) => !each.done).forEach((each) => { each.done = true; each.draw(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
// on paper colors are those of the light theme, and figures are as wide as a page
const printing = (begins) => { document.documentElement.classList.toggle("printing", begins); if (begins) drawAll(); redraw(); };
addEventListener("beforeprint", () => printing(true));
addEventListener("afterprint", () => printing(false));

// titles and names have other lines in another width
let drawnWidth = innerWidth, waiting;
addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { if (innerWidth !== drawnWidth) { drawnWidth = innerWidth; redraw(); } }, 150);
});

// the columns of both ends of y's interval, if the table has one
const whiskers = (chart, frame) => (frame.columns[chart.low] && frame.columns[chart.high] ? [chart.low, chart.high] : bounds(frame, chart.y, ""));

// layers by name, as many of them as there is room for
function layerTicks(frame, rows, width) {
  const names = frame.data.site ?? frame.data.layer;
  const found = new Map(names ? rows.map((row) => [frame.data.depth[row], String(names[row])]) : []);
  if (!found.size) return null;
  const all = [...found.keys()].sort((a, b) => a - b);
  const every = Math.ceil((all.length * NAME_ROOM) / Math.max(width - 90, 100));
  const depths = all.filter((_, place) => place % every === 0);
  const level = Math.max(...depths.map((depth) => found.get(depth).length)) * LETTER_ROOM * depths.length < width - 90;
  return { tickvals: depths, ticktext: depths.map((depth) => found.get(depth)), tickangle: level ? 0 : -45, tickfont: { size: 10 } };
}

function chartRange(chart, frame, rows) {
  const columns = [chart.y, ...(whiskers(chart, frame) ?? []), ...chart.band.filter((name) => frame.columns[name])];
  const values = columns.flatMap((name) => rows.map((row) => frame.data[name][row])).filter(Number.isFinite);
  if (chart.zero || chart.kind === "bars") values.push(0);
  if (!values.length) return undefined;
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  const room = 0.07 * (high - low || Math.abs(high) || 1);
  return [chart.kind === "bars" && low === 0 ? 0 : low - room, high + room];
}

function hover(chart, frame, row) {
  const lines = [];
  if (frame.data.site) lines.push(`<b>${escaped(frame.data.site[row])}</b>${frame.data.channel ? `, channel ${frame.data.channel[row]}` : ""}`);
  if (chart.by && frame.columns[chart.by]) lines.push(escaped(frame.data[chart.by][row]) + (frame.columns[chart.color] ? ` (${escaped(frame.data[chart.color][row])})` : ""));
  if (frame.columns[chart.x].number) lines.push(`${escaped(named(frame, chart.x))}: ${cell(frame, chart.x, row)}`);
  lines.push(`${escaped(chart.label || named(frame, chart.y))}: ${withInterval(frame, chart.y, row, chart.low === "low" ? chart.y : "")}`);
  const count = frame.data[chart.count]?.[row];
  if (count !== undefined && chart.of) lines.push(`n = ${plural(count, chart.of)}${frame.data.images && chart.of !== "images" ? `, ${plural(frame.data.images[row], "images")}` : ""}`);
  return lines.join("<br>");
}

// categories of a chart of rows, the largest value on top
function ladder(chart, frame, rows) {
  const most = new Map();
  for (const row of rows) { const name = frame.data[chart.x][row], value = frame.data[chart.y][row]; if (!(value <= (most.get(name) ?? -Infinity))) most.set(name, Number.isNaN(value) ? -Infinity : value); }
  return [...most.keys()].sort((a, b) => most.get(a) - most.get(b)).map((name) => title(String(name)));
}

// height of a chart of rows, whose names have lines of so many pixels
function tall_enough(rungs, pixels) {
  return `${80 + rungs.length * (6 + 16 * Math.max(...rungs.map((name) => inLines(name, pixels).split("<br>").length)))}px`;
}

// a series that was chosen in the legend stands out
const told_apart = (chosen, name) => (chosen.size && !chosen.has(name) ? 0.12 : 1);

function traces(chart, frame, rows, { series, hues, chosen }) {
  const drawn = [];
  if (chart.kind === "line" && frame.columns[chart.band[0]]) {
    const known = rows.filter((row) => !Number.isNaN(frame.data[chart.band[1]][row])).sort((a, b) => frame.data[chart.x][a] - frame.data[chart.x][b]);
    for (const end of chart.band) {
      drawn.push({ x: known.map((row) => frame.data[chart.x][row]), y: known.map((row) => frame.data[end][row]), mode: "lines", line: { width: 0 }, hoverinfo: "skip",
        fill: end === chart.band[1] ? "tonexty" : "none", fillcolor: css("--line") });
    }
  }
  series.forEach((name, index) => {
    const own = rows.filter((row) => !chart.by || !frame.columns[chart.by] || frame.data[chart.by][row] === name);
    if (chart.kind === "line" && frame.columns[chart.x].number) own.sort((a, b) => frame.data[chart.x][a] - frame.data[chart.x][b]);
    if (!own.length) return;
    const { color, symbol, dash } = style(frame.columns[chart.color] ? frame.data[chart.color][own[0]] : name, hues);
    const value = own.map((row) => frame.data[chart.y][row]);
    const shift = chart.kind === "line" && chart.x === "depth" && series.length > 1 ? 0.22 * (index / (series.length - 1) - 0.5) : 0;
    const trace = { x: own.map((row) => (shift ? frame.data[chart.x][row] + shift : frame.data[chart.x][row])), y: value, mode: chart.kind === "line" ? "lines+markers" : "markers",
      marker: { color, symbol, size: 6.5, line: { width: symbol.endsWith("open") ? 1.5 : 0.5, color: symbol.endsWith("open") ? color : css("--panel") } }, line: { color, width: 1.4, dash: dash ?? "solid" }, name: String(name), opacity: told_apart(chosen, name),
      text: own.map((row) => hover(chart, frame, row)), customdata: own, hovertemplate: "%{text}<extra></extra>" };
    const ends = whiskers(chart, frame);
    if (ends) {
      const [low, high] = ends.map((end) => own.map((row) => frame.data[end][row]));
      trace.error_y = { type: "data", symmetric: false, array: high.map((end, i) => end - value[i]), arrayminus: low.map((end, i) => value[i] - end), thickness: 1.2, width: 0, color };
    }
    if (chart.kind === "bars") Object.assign(trace, { type: "bar", textposition: "none", marker: { color } });
    if (chart.kind === "rows") {
      const rungs = ladder(chart, frame, rows), beside = series.length > 1 ? 0.3 * (0.5 - index / (series.length - 1)) : 0;
      [trace.x, trace.y] = [value, own.map((row) => rungs.indexOf(title(String(frame.data[chart.x][row]))) + beside)];
      [trace.error_x, trace.error_y] = [trace.error_y, undefined];
    }
    drawn.push(trace);
  });
  return drawn;
}

function marks(chart, frame, rows) {
  const kept = [...STATE.pins.values()];
  const shapes = [];
  if (chart.zero && chart.kind === "rows") shapes.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: 0, x1: 0, layer: "below", line: { color: css("--faint"), width: 1 } });
  else if (chart.zero) shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, layer: "below", line: { color: css("--faint"), width: 1 } });
  const annotations = [];
  if (chart.x === "depth" && frame.data.site) {
    const depths = new Map(rows.map((row) => [frame.data.site[row], frame.data.depth[row]]));
    if (depths.has(STATE.site)) shapes.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: depths.get(STATE.site), x1: depths.get(STATE.site), layer: "below", line: { color: css("--local"), width: 6 }, opacity: 0.16 });
    const letters = new Map();
    for (const each of kept.filter((one) => depths.has(one.site))) letters.set(each.site, (letters.get(each.site) ?? "") + each.letter);
    for (const [site, letter] of letters) {
      annotations.push({ x: depths.get(site), y: 1, yref: "paper", yanchor: "bottom", text: `<b>${letter}</b>`, showarrow: false, font: { color: css("--pin"), size: 12 } });
      shapes.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: depths.get(site), x1: depths.get(site), line: { color: css("--pin"), width: 1, dash: "dot" } });
    }
  } else if (frame.data.channel && frame.data.site) {
    for (const each of kept) for (const row of rows.filter((one) => frame.data.site[one] === each.site && frame.data.channel[one] === each.channel)) {
      annotations.push({ x: frame.data[chart.x][row], y: frame.data[chart.y][row], text: `<b>${each.letter}</b>`, arrowcolor: css("--pin"), arrowwidth: 1.5, arrowhead: 6, ax: 14, ay: -18, font: { color: css("--pin"), size: 13 } });
    }
  }
  return { shapes, annotations };
}

// few whole numbers are said one by one, and a single one of any kind
function wholes(values) {
  const all = unique(values).sort((a, b) => a - b);
  return all.length === 1 || (all.at(-1) - all[0] <= 8 && all.every(Number.isInteger)) ? { tickvals: all } : {};
}

// a logarithmic axis that says 1, 2 and 5 of every power of ten among the values
function decades(values) {
  const low = Math.min(...values), high = Math.max(...values), at = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    at.push(...[1, 2, 5].map((step) => Number(`${step}e${power}`)).filter((each) => each >= low && each <= high));
  }
  return { type: "log", tickvals: at, ticktext: at.map(String) };
}

function drawPanel(div, chart, frame, rows, told, range) {
  const numeric = frame.columns[chart.x].number, lying = chart.kind === "rows";
  const value = chart.label || named(frame, chart.y);
  const layers = chart.x === "depth" && layerTicks(frame, rows, div.clientWidth);
  const across = layers ? "layer" : chart.x === "depth" ? "depth (layer in execution order)" : named(frame, chart.x);
  const rungs = lying ? ladder(chart, frame, rows) : [], room = div.clientWidth / 2;
  if (lying) div.style.height = tall_enough(rungs, room);
  const names = lying ? Math.min(room, Math.max(...rungs.map((name) => name.length)) * LETTER_ROOM) : 60;
  const wide = div.clientWidth - names - 20, tall = div.clientHeight - 70;
  const x = lying ? axis(value, { range }, wide) : axis(across, layers ? layers : chart.log ? decades(rows.map((row) => frame.data[chart.x][row])) : numeric ? wholes(rows.map((row) => frame.data[chart.x][row])) : { type: "category" }, wide);
  const y = lying ? axis("", { range: [-0.6, rungs.length - 0.4], tickvals: [...rungs.keys()], ticktext: rungs.map((name) => inLines(name, room)) }) : axis(value, { range }, tall);
  Plotly.react(div, traces(chart, frame, rows, told), layout(x, y, { ...marks(chart, frame, rows), ...sized(div), margin: { l: 50, r: 14, t: 18, b: 40 } }), CONFIG);
  if (!div.dataset.live) {
    div.dataset.live = "yes";
    div.on("plotly_click", ({ points }) => {
      const row = points[0].customdata;
      if (frame.data.site) select(frame.data.site[row]);
      if (frame.data.site && frame.data.channel) pin(frame.data.site[row], frame.data.channel[row]);
    });
    const again = () => Plotly.relayout(div, marks(chart, frame, rows));
    on("pins", again);
    on("site", again);
  }
}

// a name of the legend; where series have colors of their own, choosing names lets the others fade
function legendEntry(name, hues, chosen, selectable, again) {
  const dot = make("b");
  const paint = () => {
    const { color, symbol, dash } = style(name, hues);
    dot.style.borderColor = color;
    if (dash && dash !== "solid") dot.className = "again";
    dot.style.background = symbol.endsWith("open") ? "transparent" : color;
  };
  PAINTED.push(paint);
  paint();
  if (!selectable) return make("span", {}, dot, title(String(name)));
  const button = make("button", { type: "button", "aria-pressed": "false", title: "Show this one clearly; again to undo", onclick: () => {
    chosen.has(name) ? chosen.delete(name) : chosen.add(name);
    button.setAttribute("aria-pressed", String(chosen.has(name)));
    again();
  } }, dot, title(String(name)));
  return button;
}

// buttons that save a figure and its numbers
function saves(title, picture, numbers, kind = "SVG") {
  const button = (text, what, action) => action && make("button", { type: "button", textContent: text, title: `Save ${what} as ${text}`, "aria-label": `Save ${what} of ${title} as ${text}`, onclick: action });
  return make("span", { className: "saves" }, button(kind, "the figure", picture), button("CSV", "the numbers", numbers));
}

// every visible panel as one SVG file
async function saveSvg(plots, name) {
  for (const { div, draw, label } of plots.filter(({ div }) => div.offsetParent)) {
    if (!div.dataset.live) draw();
    const address = await Plotly.toImage(div, { format: "svg", width: div.clientWidth, height: div.clientHeight });
    make("a", { href: address, download: `${name}${label ? `_${label.replaceAll(/[^\w.]+/g, "_")}` : ""}.svg` }).click();
  }
}

// one figure per combination of the panel columns; those the chart does not ask for first are folded away
function addChart(root, chart, frame) {
  const columns = chart.panels.filter((name) => frame.columns[name]);
  const split = chart.by && frame.columns[chart.by];
  const groups = new Map();
  const wanted = Object.entries(chart.where).filter(([name]) => frame.columns[name]);
  const all = [...Array(frame.length).keys()].filter((row) => wanted.every(([name, values]) => values.includes(frame.data[name][row])) && columns.every((name) => frame.data[name][row] !== ""));
  const words = columns.filter((name) => !frame.columns[name].number);
  const numbers = columns.filter((name) => frame.columns[name].number && unique(all.map((row) => frame.data[name][row])).length > 1);
  for (const row of all) {
    const told = words.map((name) => title(String(frame.data[name][row]))).join(" with ");
    const label = [...(told ? [told] : []), ...numbers.map((name) => `${columnTitle(name)} ${frame.data[name][row]}`)].join(", ");
    const first = columns.every((name) => !chart.only[name] || chart.only[name].includes(frame.data[name][row]));
    if (!groups.has(label)) groups.set(label, { rows: [], first });
    groups.get(label).rows.push(row);
  }
  const drawable = all.filter((row) => Number.isFinite(frame.data[chart.y][row]));
  const series = split ? unique(drawable.map((row) => frame.data[chart.by][row])) : [""];
  const hues = frame.columns[chart.color] ? unique(drawable.map((row) => frame.data[chart.color][row])) : series;
  const shared = chart.free ? null : chartRange(chart, frame, all);
  const legend = make("div", { className: "legend" });
  const chosen = new Set();
  if (hues.length > SERIES.length && ordered_values(hues)) legend.append(make("span", { className: "colors" }, String(hues[0]), make("i"), String(hues.at(-1))));
  else if (hues.length > 1) for (const name of hues) legend.append(legendEntry(name, hues, chosen, hues === series, () => plots.forEach(({ draw, div }) => div.dataset.live && draw())));
  const plots = [];
  root.append(make("div", { className: "charthead" }, make("h3", { textContent: chart.title }), legend,
    saves(chart.title, () => saveSvg(plots, `${frame.name}_${chart.y}`), () => download(frame, all, `${frame.name}_${chart.y}`))));
  const folded = [...groups].filter(([, group]) => !group.first);
  const place = (target, list) => {
    const panels = make("div", { className: list.length === 1 ? "panels one" : "panels" });
    target.append(panels);
    for (const [label, { rows }] of list) {
      const div = make("div", { className: "plot" });
      if (chart.kind === "rows") div.style.height = tall_enough(ladder(chart, frame, rows), root.clientWidth / 2);
      else if (chart.x === "depth" && layerTicks(frame, rows, div.clientWidth || root.clientWidth)?.tickangle) div.classList.add("named");
      panels.append(make("figure", {}, label ? make("figcaption", { textContent: label }) : null, div));
      const draw = () => drawPanel(div, chart, frame, rows, { series, hues, chosen }, shared ?? chartRange(chart, frame, rows));
      plots.push({ div, draw, label });
      lazily(div, draw);
    }
  };
  place(root, [...groups].filter(([, group]) => group.first));
  if (chart.caption) root.append(make("p", { className: "caption", textContent: chart.caption }));
  if (folded.length) {
    const more = make("details", {}, make("summary", { textContent: `${plural(folded.length, "more panels")}` }));
    root.append(more);
    place(more, folded);
  }
}
