// data: the run's tables, decoded; numbers as people read them (the same rules as tables/frame.py).
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const SPECIAL = { nan: NaN, inf: Infinity, "-inf": -Infinity };
const QUANTITIES = DATA.quantities;

for (const frame of Object.values(DATA.frames)) {
  for (const [name, column] of Object.entries(frame.columns)) {
    if (column.number) frame.data[name] = frame.data[name].map((value) => (typeof value === "string" ? SPECIAL[value] : value));
  }
  frame.length = Object.values(frame.data)[0]?.length ?? 0;
}

function shown(value, digits = 3, top = null) {
  if (Number.isNaN(value)) return "undefined";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  let text;
  if (top !== null && size < top && Number(size.toFixed(digits)) >= top) {
    const places = Math.max(digits, 1);
    text = (Math.floor(size * 10 ** places) / 10 ** places).toFixed(places);
  } else if (size && Number(size.toFixed(digits)) === 0) {
    const [mantissa, exponent] = size.toExponential(0).split("e");
    text = Number(exponent) >= -4 ? size.toFixed(-exponent) : `${mantissa}e−${-exponent}`;
  } else {
    text = size.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  }
  return value < 0 ? "−" + text : text;
}

const columnTitle = (name) => QUANTITIES[name]?.title ?? DATA.titles[name] ?? name.replaceAll("_", " ");
const title = (name) => name.split(" → ").map((part) => DATA.valueTitles[part] ?? columnTitle(part)).join(" → ");
const unit = (frame, name) => frame.columns[name]?.unit ?? "";
const named = (frame, name) => {
  const words = columnTitle(name), own = unit(frame, name);
  return words + (own && ![words, `${words}s`].includes(own) ? ` [${own}]` : "");
};
const top1 = (frame, name) => (frame.columns[name]?.high === 1 ? 1 : null);
const cell = (frame, name, row) => shown(frame.data[name][row], frame.columns[name].digits ?? 3, top1(frame, name));
const unique = (values) => [...new Set(values)];
const escaped = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");

// "0.23 [0.18, 0.28]": a value with the interval that the frame has for it, if any
function bounds(frame, name, value) {
  if (frame.columns[`${name}_se`] && !frame.columns[`${name}_low`]) {
    for (const [end, sign] of [["low", -1], ["high", 1]]) frame.data[`${name}_${end}`] ??= frame.data[name].map((value, row) => value + sign * 1.96 * frame.data[`${name}_se`][row]);
    return [`${name}_low`, `${name}_high`];
  }
  if (frame.columns[`${name}_low`]) return [`${name}_low`, `${name}_high`];
  return name === value && frame.columns.low ? ["low", "high"] : null;
}

function withInterval(frame, name, row, value, digits) {
  const ends = bounds(frame, name, value);
  const places = digits ?? frame.columns[name].digits ?? 3;
  const number = shown(frame.data[name][row], places, top1(frame, name));
  if (!ends || Number.isNaN(frame.data[name][row])) return number;
  const [low, high] = ends.map((end) => frame.data[end][row]);
  if (Number.isNaN(low) || Number.isNaN(high)) return `${number} [no interval]`;
  return `${number} [${shown(low, places, top1(frame, name))}, ${shown(high, places, top1(frame, name))}]`;
}

function plural(count, words) {
  return `${count.toLocaleString("en-US")} ${count === 1 && words.endsWith("s") ? words.slice(0, -1) : words}`;
}

// a small maker of elements: text is always text, never markup
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element && key !== "list") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
