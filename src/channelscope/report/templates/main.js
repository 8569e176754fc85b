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
const channelTable = document.getElementById("channel-table");
// what identifies a channel first, then its quantities in the order they are explained in, then the rest
const order = ["site", "channel", "stage", ...Object.keys(QUANTITIES), "note"];
if (channelTable) addTable(channelTable, DATA.frames.channels, { order, stage: DATA.frames.channels.data.stage ? DATA.stages.at(-1) ?? "" : "" });
addEventListener("beforeprint", drawAll);
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && STATE.pins.size) { STATE.pins.clear(); tell("pins"); } });
window.channelscope = { data: DATA, state: STATE, pin, select, shown, drawAll };
