// What a reader would stumble over, as lists of words; run inside a page by test_every_page.py.
(() => {
  const shown = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && element.getClientRects().length > 0;
  const path = (element) => {
    const own = element.id ? `#${element.id}` : element.tagName.toLowerCase() + (element.getAttribute("class") ? `.${element.getAttribute("class").trim().split(/\s+/).join(".")}` : "");
    return element.parentElement && element !== document.body ? `${path(element.parentElement).split(" > ").slice(-2).join(" > ")} > ${own}` : own;
  };
  const said = (element) => `${path(element)} "${element.textContent.trim().replace(/\s+/g, " ").slice(0, 60)}"`;

  // every element with words of its own, and the rectangle of these words
  function words() {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const element = node.parentElement;
      if (!node.data.trim() || element.closest("script, style, noscript, title, .notifier, option, optgroup") || !shown(element)) continue;
      const range = document.createRange();
      range.selectNodeContents(node);
      const box = element instanceof SVGElement ? element.getBoundingClientRect() : range.getBoundingClientRect();
      if (box.width && box.height) found.push({ element, box });
    }
    return found;
  }

  const scrolls = (style) => /auto|scroll/.test(style.overflowX) || /auto|scroll/.test(style.overflowY);
  const framed = (style) => parseFloat(style.borderRightWidth) > 0 && style.borderRightStyle !== "none" && !/rgba\(.*, 0\)|transparent/.test(style.borderRightColor);

  // words that stick out of the window, of a card, a button or a cell, or that are cut off without an ellipsis
  function outside() {
    const found = [];
    for (const { element, box } of words()) {
      for (let around = element; around; around = around.parentElement) {
        const style = getComputedStyle(around), edge = around.getBoundingClientRect();
        if (style.position === "fixed" && around.matches(".skip")) break;
        const clips = style.overflowX === "hidden" || style.overflowX === "clip";
        if (clips && style.textOverflow === "ellipsis") break;
        const cell = around.matches("td, th"), box_like = framed(style) || clips || cell || around.matches("svg.main-svg, svg.diagram");
        if (box_like && !scrolls(style) && !/inline$|contents/.test(style.display) && (box.left < edge.left - 1.5 || box.right > edge.right + 1.5 || (around.matches("svg.main-svg") && (box.top < edge.top - 2 || box.bottom > edge.bottom + 2)))) {
          const sides = (one) => `${one.left.toFixed(0)}–${one.right.toFixed(0)}, ${one.top.toFixed(0)}–${one.bottom.toFixed(0)}`;
          found.push(`${said(element)} leaves ${path(around)}: ${sides(box)} of ${sides(edge)}`);
          break;
        }
        if (scrolls(style) && around !== document.documentElement) break;
        if (around === document.body && (box.right > innerWidth + 1 || box.left < -1) && !element.matches(".skip")) found.push(`${said(element)} leaves the window`);
      }
    }
    return found;
  }

  // words of the same drawing that lie on each other
  function overlapping() {
    const found = [];
    for (const plot of document.querySelectorAll(".main-svg, .diagram")) {
      const texts = [...plot.querySelectorAll(".xtick text, .ytick text, .xtitle, .ytitle, .title")].filter(shown);
      const level = texts.filter((text) => !/rotate\((?!0)/.test(text.getAttribute("transform") ?? "")).map((text) => [text, text.getBoundingClientRect()]);
      for (let i = 0; i < level.length; i++) for (let j = 0; j < i; j++) {
        const [one, other] = [level[i][1], level[j][1]];
        const across = Math.min(one.right, other.right) - Math.max(one.left, other.left), down = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
        if (across > 2 && down > 2) found.push(`${said(level[i][0])} lies on ${said(level[j][0])}`);
      }
    }
    return found;
  }

  const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const known = new Map();
  function rgba(color) {
    if (!known.has(color)) {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = color;
      pen.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
      known.set(color, [r, g, b, a / 255]);
    }
    return known.get(color);
  }
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  function ground(element) {
    const layers = [];
    for (let each = element; each; each = each.parentElement) {
      const color = rgba(getComputedStyle(each).backgroundColor);
      if (color[3]) layers.push(color);
      if (color[3] === 1) break;
    }
    return layers.reverse().reduce((below, color) => over(color, below), [255, 255, 255, 1]);
  }
  const light = ([r, g, b]) => [r, g, b].map((value) => value / 255).map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)).reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  const contrast = (one, other) => { const [a, b] = [light(one), light(other)].sort((x, y) => y - x); return (a + 0.05) / (b + 0.05); };

  // what is drawn behind words of a drawing
  function behind(text) {
    const at = text.getBoundingClientRect(), [x, y] = [at.x + at.width / 2, at.y + at.height / 2];
    let below = ground(text.ownerSVGElement.parentElement);
    for (const shape of text.ownerSVGElement.querySelectorAll("rect, circle, ellipse")) {
      if (!(shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING)) break;
      const box = shape.getBoundingClientRect(), style = getComputedStyle(shape);
      if (style.fill === "none" || !shown(shape) || x < box.left || x > box.right || y < box.top || y > box.bottom) continue;
      const [r, g, b, a] = rgba(style.fill);
      below = over([r, g, b, a * Number(style.fillOpacity) * Number(style.opacity)], below);
    }
    return below;
  }

  // words whose contrast with what is behind them is below WCAG 2.2, AA: 4.5, or 3 for large letters
  function faint() {
    const found = new Set();
    for (const { element } of words()) {
      if (element.closest(":disabled, .off, .skip")) continue;
      const style = getComputedStyle(element), size = parseFloat(style.fontSize), drawn = element instanceof SVGElement;
      let clear = 1;
      for (let each = element; each; each = each.parentElement) clear *= Number(getComputedStyle(each).opacity);
      const below = !drawn ? ground(element) : element.closest("svg.diagram") ? rgba(getComputedStyle(document.querySelector(".ground")).fill) : behind(element);
      const [r, g, b, a] = rgba(drawn ? style.fill : style.color);
      const ratio = contrast(over([r, g, b, a * clear * (drawn ? Number(style.fillOpacity) : 1)], below), below);
      if (ratio < (size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5)) found.add(`${ratio.toFixed(2)} ${path(element)} "${element.textContent.trim().slice(0, 30)}"`);
    }
    return [...found];
  }

  // figures without a sentence beside them, or without their picture and numbers to save
  function bare() {
    const found = [];
    for (const head of document.querySelectorAll(".charthead")) {
      const saved = [...head.querySelectorAll(".saves button")].map((button) => button.textContent);
      if (!saved.some((name) => name === "SVG" || name === "PNG") || !saved.includes("CSV")) found.push(`${said(head)} is saved as ${saved}`);
      let caption = "";
      for (let next = head.nextElementSibling; next && !next.matches(".charthead"); next = next.nextElementSibling) if (next.matches(".caption")) caption += next.textContent.trim();
      if (caption.length < 20) found.push(`${said(head)} does not say how to read it`);
    }
    return found;
  }

  const CONTROLS = "a[href], button, input, select, summary, [tabindex]:not([tabindex='-1'])";
  const controls = () => [...document.querySelectorAll(CONTROLS)].filter((each) => shown(each) && !each.disabled);
  // what the keyboard has been on, and what had no mark while it was
  function follow() {
    const seen = new Set(), unmarked = new Set();
    addEventListener("focusin", ({ target }) => {
      seen.add(target);
      const style = getComputedStyle(target), inside = target.querySelector(":scope > .frame, :scope > .plus");
      if ((style.outlineStyle === "none" || parseFloat(style.outlineWidth) < 1) && !(inside && parseFloat(getComputedStyle(inside).strokeWidth) >= 3)) unmarked.add(said(target));
    });
    window.looks.seen = seen;
    window.looks.unmarked = unmarked;
  }
  const missed = () => controls().filter((each) => !window.looks.seen.has(each)).map(said);

  // the focus on one control, and how often it is clicked from now on
  function focus(control) {
    window.looks.hits = 0;
    control.addEventListener("click", () => (window.looks.hits += 1), { once: true });
    control.focus();
  }

  window.looks = { focus, hits: 0, outside, overlapping, faint, bare, controls, follow, missed, said, shown };
})();
