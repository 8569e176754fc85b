// table: any of the run's tables, sorted by a click on a heading, filtered by words and comparisons.
const STEP = 50;
const COMPARE = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b };

// "layer2 overlap>0.3" keeps rows with layer2 in a text column and overlap above 0.3
function filtered(frame, words) {
  const tests = words.trim().toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
    const [, name, sign, number] = word.match(/^(\w+)(<=|>=|<|>|=)(-?[\d.]+(?:e-?\d+)?)$/) ?? [];
    if (name && frame.columns[name]?.number) return (row) => COMPARE[sign](frame.data[name][row], Number(number));
    const texts = Object.keys(frame.columns).filter((each) => !frame.columns[each].number);
    return (row) => texts.some((each) => String(frame.data[each][row]).toLowerCase().includes(word));
  });
  return (row) => tests.every((test) => test(row));
}

// undefined values are last whichever way the order goes
function ordered(frame, rows, name, down) {
  const values = frame.data[name];
  const by = frame.columns[name].number ? (a, b) => a - b || 0 : (a, b) => String(a).localeCompare(String(b), "en", { numeric: true });
  return rows.sort((a, b) => {
    const [one, other] = [values[a], values[b]];
    if (Number.isNaN(one) || Number.isNaN(other)) return Number.isNaN(one) - Number.isNaN(other) || a - b;
    return (one === other ? 0 : down ? by(other, one) : by(one, other)) || a - b;
  });
}

function addTable(root, frame, { value = "", stage = "", order = [] } = {}) {
  const folded = new Set(Object.keys(frame.columns).flatMap((name) => bounds(frame, name, value) ?? []));
  const columns = unique([...order.filter((name) => frame.columns[name]), ...Object.keys(frame.columns)]).filter((name) => !folded.has(name));
  const pinnable = Boolean(frame.data.site && frame.data.channel && frame.columns.channel.number);
  const state = { sort: "", down: false, limit: STEP, stage, site: "", words: "" };
  const body = make("tbody"), said = make("span", { role: "status" });
  const search = make("input", { type: "search", placeholder: columns.includes("overlap") ? "layer2 overlap>0.3" : "words, or column>number", "aria-label": "Filter rows", oninput: () => ((state.words = search.value), (state.limit = STEP), show()) });
  const controls = make("div", { className: "controls" }, make("label", {}, "filter", search));
  for (const name of ["stage", "site"].filter((each) => frame.data[each] && unique(frame.data[each]).length > 1)) {
    const box = make("select", { onchange: () => ((state[name] = box.value), (state.limit = STEP), show()) }, make("option", { value: "", textContent: `all ${name === "site" ? "layers" : "stages"}` }),
      ...unique(frame.data[name]).map((each) => make("option", { value: each, textContent: each })));
    box.value = state[name];
    controls.append(make("label", {}, name === "site" ? "layer" : "stage", box));
  }
  const heads = columns.map((name) => {
    const head = make("th", { scope: "col", title: frame.columns[name].meaning ?? "", className: frame.columns[name].number ? "" : "word" },
      make("button", { type: "button", onclick: () => sort(name) }, columnTitle(name), unit(frame, name) ? make("small", { textContent: unit(frame, name) }) : null));
    head.dataset.column = name;
    return head;
  });
  const more = make("button", { type: "button", onclick: () => ((state.limit += 4 * STEP), show()) });
  const save = make("button", { type: "button", textContent: "Save as CSV", onclick: () => download(frame, rows(), frame.name) });
  const row0 = make("tr", {}, pinnable ? make("th", { scope: "col" }, make("small", { textContent: "keep" })) : null, ...heads);
  root.append(controls, make("div", { className: "grid", tabIndex: 0, role: "region", "aria-label": `Table ${frame.name}` }, make("table", {}, make("thead", {}, row0), body)), make("div", { className: "below" }, said, more, save));

  function rows() {
    const test = filtered(frame, state.words);
    const found = [];
    for (let row = 0; row < frame.length; row++) {
      if ((!state.stage || frame.data.stage[row] === state.stage) && (!state.site || frame.data.site[row] === state.site) && test(row)) found.push(row);
    }
    return state.sort ? ordered(frame, found, state.sort, state.down) : found;
  }
  function sort(name) {
    state.down = state.sort === name ? !state.down : Boolean(frame.columns[name].number);
    state.sort = name;
    for (const head of heads) head.dataset.column === name ? head.setAttribute("aria-sort", state.down ? "descending" : "ascending") : head.removeAttribute("aria-sort");
    show();
  }
  function show() {
    const found = rows();
    const kept = pinnable ? found.filter((row) => STATE.pins.has(key(frame.data.site[row], frame.data.channel[row]))) : [];
    const visible = new Set([...kept.filter((row) => found.indexOf(row) >= state.limit), ...found.slice(0, state.limit)]);
    body.replaceChildren(...[...visible].map(line));
    said.textContent = `${visible.size.toLocaleString("en-US")} of ${plural(found.length, "rows")}${found.length < frame.length ? ` (${frame.length.toLocaleString("en-US")} without filters)` : ""}`;
    more.hidden = visible.size >= found.length;
    more.textContent = `Show ${Math.min(4 * STEP, found.length - state.limit).toLocaleString("en-US")} more`;
  }
  function line(row) {
    const name = pinnable ? key(frame.data.site[row], frame.data.channel[row]) : "";
    const held = STATE.pins.get(name);
    const button = pinnable && make("button", { type: "button", className: "keep", textContent: held ? held.letter : "+", "aria-pressed": String(Boolean(held)), "aria-label": `Keep ${name.replace(" ", ", channel ")}`,
      onclick: () => { select(frame.data.site[row]); pin(frame.data.site[row], frame.data.channel[row]); body.querySelector(`[data-row="${row}"] button`)?.focus(); } });
    const cells = columns.map((column) => {
      if (!frame.columns[column].number) return make("td", { className: "word", title: frame.data[column][row], textContent: frame.data[column][row] });
      return make("td", { className: Number.isFinite(frame.data[column][row]) ? "" : "odd", textContent: withInterval(frame, column, row, value) });
    });
    return make("tr", { "data-row": row, className: held ? "pinned" : "" }, pinnable ? make("td", {}, button) : null, ...cells);
  }
  show();
  if (pinnable) on("pins", show);
}

function download(frame, rows, name) {
  const quoted = (value) => (/[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
  const columns = Object.keys(frame.columns);
  const lines = [columns, ...rows.map((row) => columns.map((column) => frame.data[column][row]))].map((line) => line.map(quoted).join(","));
  const link = make("a", { href: URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" })), download: `${name}.csv` });
  link.click();
  URL.revokeObjectURL(link.href);
}
