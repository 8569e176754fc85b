// main: puts the parts into the page. `channelscope` in the console reaches them.
// the column that a table's low and high belong to: the one that its chart draws them around
const onlyValue = (charts, frame) => charts.find((chart) => chart.table === frame.name && chart.low === "low")?.y ?? "";
for (const [name, frame] of Object.entries(DATA.frames)) frame.name = name;

const mapping = document.getElementById("mapping");
if (mapping) startMap(mapping);
for (const section of document.querySelectorAll("section[data-section]")) {
  const { value, charts } = DATA.sections[section.dataset.section];
  for (const chart of charts) addChart(section.querySelector(".charts"), chart, DATA.frames[chart.table]);
  for (const fold of section.querySelectorAll(":scope > details.numbers")) {
    const frame = DATA.frames[fold.dataset.table];
    const fill = () => { if (fold.open && !fold.dataset.filled) { fold.dataset.filled = "yes"; addTable(fold.querySelector(".table"), frame, { value: frame.columns[value] ? value : onlyValue(charts, frame) }); } };
    fold.addEventListener("toggle", fill);
    fill();
  }
}
for (const place of document.querySelectorAll("[data-picture]")) {
  const { picture, table } = place.dataset, image = place.closest(".charthead").nextElementSibling.querySelector("img");
  const kind = image.src.startsWith("data:image/svg") ? "SVG" : "PNG", frame = DATA.frames[table];
  place.replaceWith(saves(image.alt, () => make("a", { href: image.src, download: `${picture}.${kind.toLowerCase()}` }).click(),
    frame && (() => download(frame, [...Array(frame.length).keys()], table)), kind));
}
// the cards and the drawing of the quantities, which the page itself holds
const XML = "http://www.w3.org/2000/svg";
function saveText(text, type, name) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}
const drawnText = (element) => `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(element)}\n`;

// the cards as one drawing: a title for each, and a line for each of its bars
function cardsDrawn(cards) {
  const [wide, scale, at] = [760, 380, 260], lines = [], words = (element) => element.textContent.trim().replace(/\s+/g, " ");
  const add = (tag, properties, text = "") => lines.push(Object.assign(document.createElementNS(XML, tag), { textContent: text })) && Object.entries(properties).forEach(([key, value]) => lines.at(-1).setAttribute(key, value));
  const place = (mark, side) => at + (scale * parseFloat(mark.style[side])) / 100;
  let y = 20;
  for (const card of cards) {
    add("text", { x: 10, y, "font-weight": 650 }, words(card.querySelector("h2")));
    for (const bar of card.querySelectorAll(".bar")) {
      y += 24;
      const [range, dot, stage] = [".range", ".dot", ".stage"].map((part) => bar.querySelector(part)), color = css(bar.matches(".after") ? "--after" : "--before");
      add("text", { x: 10, y: y + 4 }, [stage, bar.querySelector(".number")].filter(Boolean).map(words).join(" "));
      add("path", { d: `M${at} ${y}h${scale}M${at + scale / 2} ${y - 8}v16`, stroke: css("--faint"), fill: "none" });
      if (range) add("rect", { x: place(range, "left"), y: y - 3, width: Math.max(2, (scale * parseFloat(range.style.width)) / 100), height: 6, rx: 3, fill: color, "fill-opacity": 0.38 });
      if (dot) add("circle", { cx: place(dot, "left"), cy: y, r: 5, fill: color });
    }
    y += 20;
    [...card.querySelectorAll(".ticks i")].forEach((tick, end) => add("text", { x: at + (scale * end) / 2, y, "font-size": 10, "text-anchor": "middle" }, tick.textContent));
    y += 32;
  }
  const whole = document.createElementNS(XML, "svg");
  for (const [key, value] of Object.entries({ viewBox: `0 0 ${wide} ${y}`, width: wide, height: y, "font-family": "sans-serif", "font-size": 12, fill: css("--ink") })) whole.setAttribute(key, value);
  whole.append(...lines);
  return whole;
}
const means = DATA.frames.alignment_mean;
document.querySelector("[data-cards]")?.replaceWith(saves("the rank correlations", () => saveText(drawnText(cardsDrawn(document.querySelectorAll(".card"))), "image/svg+xml", "alignment_mean.svg"),
  means && (() => download(means, [...Array(means.length).keys()], "alignment_mean"))));
const comma = (text) => `"${text.trim().replace(/\s+/g, " ").replaceAll('"', '""')}"`;
document.querySelector("[data-drawing]")?.replaceWith(saves("the quantities", () => saveText(drawnText(document.querySelector(".drawing svg")), "image/svg+xml", "quantities.svg"),
  () => saveText([...document.querySelectorAll("table.quantities tr")].map((row) => [...row.cells].map((cell) => comma(cell.innerText)).join(",")).join("\n") + "\n", "text/csv", "quantities.csv")));
const channelTable = document.getElementById("channel-table");
// what identifies a channel first, then its quantities in the order they are explained in, then the rest
const order = ["site", "channel", "stage", ...Object.keys(QUANTITIES), "note"];
if (channelTable) addTable(channelTable, DATA.frames.channels, { order, stage: DATA.frames.channels.data.stage ? DATA.stages.at(-1) ?? "" : "" });

// the menu of the page's parts, and which of them is in view
const nav = document.querySelector("nav"), menu = nav.querySelector(".menu"), links = [...nav.querySelectorAll(".links a")];
const opened = (open) => { nav.classList.toggle("open", open); menu.setAttribute("aria-expanded", String(open)); };
menu.addEventListener("click", () => opened(!nav.classList.contains("open")));
for (const link of links) link.addEventListener("click", () => opened(false));
document.addEventListener("click", (event) => { if (!nav.contains(event.target)) opened(false); });
function locate() {
  const passed = links.filter((link) => document.querySelector(link.hash).getBoundingClientRect().top < innerHeight / 3);
  for (const link of links) link === passed.at(-1) ? link.setAttribute("aria-current", "location") : link.removeAttribute("aria-current");
  menu.textContent = passed.length ? passed.at(-1).textContent : "Contents";
}
addEventListener("scroll", locate, { passive: true });
// one row of links where it fits, else the menu
function fold() {
  nav.classList.remove("many");
  nav.classList.toggle("many", links.length > 0 && links.at(-1).offsetTop > links[0].offsetTop);
}
addEventListener("resize", fold);
fold();

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && nav.classList.contains("open")) { opened(false); menu.focus(); }
  else if (event.key === "Escape" && STATE.pins.size) { STATE.pins.clear(); tell("pins"); }
});
window.channelscope = { data: DATA, state: STATE, pin, select, shown, drawAll };
