"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const names = Object.keys(data.sites);
const last = data.stages[data.stages.length - 1];
const state = { site: names[0], local: "capture", target: "relevance", pin: null, sort: null, down: true };
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const finite = (v) => typeof v === "number";
const show = (v, digits) => (v === null ? "undefined" : v === "inf" ? "∞" : v === "-inf" ? "−∞" : v < 1 && Number(v.toFixed(digits)) === 1 ? ">" + (1 - 10 ** -digits).toFixed(digits) : v.toFixed(digits).replace("-", "−"));
const q = (name) => data.quantities[name];
const axisTitle = (name) => q(name).title + (q(name).span.includes("nats") ? " [nats]" : "");

function look(title, extra) {
  return Object.assign({
    title: { text: title, font: { size: 14 }, x: 0.01, xanchor: "left" }, margin: { l: 62, r: 14, t: 34, b: 48 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: color("--ink"), family: "inherit", size: 12.5 },
    hoverlabel: { align: "left" }, legend: { orientation: "h", y: 1.14, x: 1, xanchor: "right" },
    xaxis: { gridcolor: color("--line"), zerolinecolor: color("--line") }, yaxis: { gridcolor: color("--line"), zerolinecolor: color("--soft") },
  }, extra);
}
const quiet = { displaylogo: false, responsive: true, displayModeBar: false };

function words(site, stage, channel) {
  const own = data.sites[site].stages[stage];
  return data.columns.map((c) => `${q(c).title} ${show(own[c][channel], q(c).digits)}`);
}

function drawMaps() {
  const box = $("stages");
  box.replaceChildren();
  const own = data.sites[state.site];
  const both = data.stages.filter((stage) => own.stages[stage]);
  const places = both.map((stage) => {
    const place = document.createElement("div");
    place.className = "plot";
    place.dataset.stage = stage;
    return place;
  });
  box.append(...places);
  both.forEach((stage, number) => {
    const place = places[number];
    const xs = own.stages[stage][state.local], ys = own.stages[stage][state.target];
    const seen = xs.map((_, i) => i).filter((i) => finite(xs[i]) && finite(ys[i]));
    const pinned = state.pin && state.pin.site === state.site ? state.pin.channel : -1;
    const trace = {
      type: seen.length > 3000 ? "scattergl" : "scatter", mode: "markers", x: seen.map((i) => xs[i]), y: seen.map((i) => ys[i]), customdata: seen,
      text: seen.map((i) => `<b>${state.site}:${i}</b><br>` + words(state.site, stage, i).join("<br>")), hoverinfo: "text",
      marker: {
        size: seen.map((i) => (i === pinned ? 14 : 8)), color: seen.map((i) => (i === pinned ? color("--pin") : stage === last ? color("--local") : color("--before"))),
        opacity: 0.8, line: { width: seen.map((i) => (i === pinned ? 2 : 0)), color: color("--ink") },
      },
    };
    const missing = xs.length - seen.length;
    const title = `${stage}: n = ${seen.length} channels` + (missing ? `, ${missing} undefined or infinite (in the table)` : "");
    const layout = look(title, {});
    layout.xaxis.title = { text: axisTitle(state.local) };
    layout.yaxis.title = { text: axisTitle(state.target) };
    Plotly.newPlot(place, [trace], layout, quiet).then(() => place.on("plotly_click", (event) => pin(state.site, event.points[0].customdata)));
  });
}

function drawAlignment() {
  const traces = data.stages.map((stage) => {
    const rows = data.alignment.filter((r) => r.stage === stage && r.local === state.local && r.target === state.target);
    const tint = stage === last ? color("--local") : color("--before");
    return {
      type: "scatter", mode: "lines+markers", name: stage, x: rows.map((r) => r.depth), y: rows.map((r) => r.rho), customdata: rows.map((r) => r.site),
      error_y: { type: "data", symmetric: false, array: rows.map((r) => (r.high === null ? 0 : r.high - r.rho)), arrayminus: rows.map((r) => (r.low === null ? 0 : r.rho - r.low)), thickness: 1.2, width: 3, color: tint },
      line: { width: 1.2, color: tint }, marker: { size: rows.map((r) => (r.site === state.site ? 12 : 7)), color: tint },
      text: rows.map((r) => `<b>${r.site}</b> (${stage})<br>ρ ${show(r.rho, 2)} [${show(r.low, 2)}, ${show(r.high, 2)}]<br>n = ${r.n} channels, ${r.images} images`), hoverinfo: "text",
    };
  });
  const layout = look(`${q(state.local).title} × ${q(state.target).title.toLowerCase()}`, {});
  Object.assign(layout.xaxis, { title: { text: "depth (layers in execution order)" } });
  Object.assign(layout.yaxis, { title: { text: "Spearman's ρ" }, range: [-1.05, 1.05] });
  Plotly.newPlot("alignment", traces, layout, quiet).then((plot) => plot.on("plotly_click", (event) => choose(event.points[0].customdata)));
}

function drawGroups() {
  const rows = data.groups.filter((r) => r.stage === last && finite(r.ari));
  if (!rows.length) { $("groups").remove(); return; }
  const traces = [
    { type: "scatter", mode: "lines", x: rows.map((r) => r.depth), y: rows.map((r) => r.null_high), name: "95th percentile of chance", line: { color: color("--before"), dash: "dot", width: 1.5 }, hoverinfo: "skip" },
    { type: "scatter", mode: "markers", x: rows.map((r) => r.depth), y: rows.map((r) => r.ari), name: "measured", marker: { size: 9, color: rows.map((r) => (r.p < 0.05 ? color("--target") : color("--local"))) },
      text: rows.map((r) => `<b>${r.site}</b><br>adjusted Rand index ${show(r.ari, 3)}, p = ${show(r.p, 3)}, n = ${r.n} channels<br>chance ${show(r.null_mean, 3)}, 95th percentile ${show(r.null_high, 3)}<br>silhouettes ${show(r.silhouette_local, 2)} local, ${show(r.silhouette_target, 2)} target<br>stability ${show(r.stability_local, 2)} local, ${show(r.stability_target, 2)} target`), hoverinfo: "text", customdata: rows.map((r) => r.site) },
  ];
  const layout = look("", {});
  Object.assign(layout.xaxis, { title: { text: "depth (layers in execution order)" } });
  Object.assign(layout.yaxis, { title: { text: "adjusted Rand index" } });
  Plotly.newPlot("groups", traces, layout, quiet).then((plot) => plot.on("plotly_click", (event) => event.points[0].customdata && choose(event.points[0].customdata)));
}

const rows = names.flatMap((site) => data.sites[site].stages[last].note.map((note, channel) => {
  const own = data.sites[site].stages[last];
  return { site, channel, note, values: data.columns.map((c) => own[c][channel]) };
}));

function rank(row, key) {
  if (key === "site") return data.sites[row.site].depth * 1e6 + row.channel;
  if (key === "channel") return row.channel;
  if (key === "note") return row.note ? 1 : 0;
  const v = row.values[data.columns.indexOf(key)];
  return v === "inf" ? Infinity : v === "-inf" ? -Infinity : v;
}

function drawTable() {
  const head = $("table").tHead, body = $("table").tBodies[0];
  const keys = ["site", "channel", ...data.columns, "note"];
  head.replaceChildren(document.createElement("tr"));
  keys.forEach((key) => {
    const cell = document.createElement("th");
    cell.textContent = (q(key) ? q(key).title : key) + (state.sort === key ? (state.down ? " ↓" : " ↑") : "");
    cell.className = q(key) || key === "channel" ? "number-column" : "";
    cell.tabIndex = 0;
    cell.title = q(key) ? q(key).span : "";
    cell.ariaSort = state.sort === key ? (state.down ? "descending" : "ascending") : "none";
    const sort = () => { state.down = state.sort === key ? !state.down : true; state.sort = key; drawTable(); };
    cell.onclick = sort;
    cell.onkeydown = (event) => event.key === "Enter" && sort();
    head.rows[0].append(cell);
  });
  const wanted = $("filter").value.toLowerCase(), only = $("only").checked;
  let kept = rows.filter((r) => (!only || r.site === state.site) && (!wanted || `${r.site}:${r.channel} ${r.note}`.toLowerCase().includes(wanted)));
  if (state.sort) {
    const sign = state.down ? -1 : 1;
    kept = kept.slice().sort((a, b) => {
      const x = rank(a, state.sort), y = rank(b, state.sort);
      if (x === null || y === null) return (x === null) - (y === null);
      return x === y ? 0 : sign * (x < y ? -1 : 1);
    });
  }
  const most = 300, pinned = (r) => state.pin && r.site === state.pin.site && r.channel === state.pin.channel;
  const top = kept.filter(pinned).concat(kept.filter((r) => !pinned(r))).slice(0, most);
  $("count").textContent = `${kept.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} channels` + (kept.length > most ? `, the first ${most} shown` : "") + `; stage ${last}, n = ${data.images.toLocaleString("en")} images.`;
  body.replaceChildren(...top.map((r) => {
    const line = document.createElement("tr");
    if (pinned(r)) line.className = "pin";
    const put = (text, kind) => { const cell = document.createElement("td"); cell.textContent = text; cell.className = kind; line.append(cell); };
    put(r.site, ""); put(r.channel, "number-column");
    r.values.forEach((v, i) => put(show(v, q(data.columns[i]).digits), "number-column"));
    put(r.note, "note-column");
    line.onclick = () => { choose(r.site, false); pin(r.site, r.channel); };
    return line;
  }));
}

function pin(site, channel) {
  const same = state.pin && state.pin.site === site && state.pin.channel === channel;
  state.pin = same ? null : { site, channel };
  const text = $("pinned");
  text.replaceChildren();
  if (state.pin) {
    const mark = document.createElement("b");
    mark.textContent = `${site}:${channel}`;
    text.append(mark, " · " + words(site, last, channel).join(" · "));
  }
  drawMaps();
  drawTable();
}

function choose(site, redraw = true) {
  state.site = site;
  $("site").value = site;
  if (redraw) drawMaps();
  drawAlignment();
  if ($("only").checked) drawTable();
}

names.forEach((name) => $("site").add(new Option(name, name)));
["local", "target"].forEach((axis) => {
  const used = new Set(data.alignment.map((r) => r[axis]));
  data.columns.filter((c) => q(c).axis === axis && used.has(c)).forEach((c) => $(axis).add(new Option(q(c).title, c)));
  $(axis).value = state[axis];
  $(axis).onchange = (event) => { state[axis] = event.target.value; drawMaps(); drawAlignment(); };
});
$("site").onchange = (event) => choose(event.target.value);
const step = (by) => choose(names[(names.indexOf(state.site) + by + names.length) % names.length]);
$("previous").onclick = () => step(-1);
$("next").onclick = () => step(1);
$("filter").oninput = drawTable;
$("only").onchange = drawTable;
choose(names[Math.floor(names.length / 2)]);
drawGroups();
drawTable();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawMaps(); drawAlignment(); drawGroups(); });
window.channelscope = { state, pin, choose };
})();
