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

addEventListener("beforeprint", drawAll);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && nav.classList.contains("open")) { opened(false); menu.focus(); }
  else if (event.key === "Escape" && STATE.pins.size) { STATE.pins.clear(); tell("pins"); }
});
window.channelscope = { data: DATA, state: STATE, pin, select, shown, drawAll };
