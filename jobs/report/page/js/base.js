// Elements, numbers and the data of the page. All text of a record becomes text nodes, never markup.

const NOTHING = "–", SPACE = "\u00a0";

/** An element: properties by name (`class`, `on` for listeners, `aria-…` and `data-…` as attributes), then its children. */
function el(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (key === "class") element.className = value;
    else if (key in element && !key.includes("-")) element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const signed = (digits) => (digits.startsWith("-") ? "−" + digits.slice(1) : digits);
const fixed = (value, places) => value.toLocaleString("en-US", { minimumFractionDigits: 0, maximumFractionDigits: places });

/** A value as people write it; `formats.py` says the same in Python. */
const format = {
  text: (value) => String(value),
  id: (value) => String(value),
  count: (value) => (Number.isInteger(value) ? signed(fixed(value, 0)) : format.number(value)),
  number(value) {
    if (Number.isInteger(value) || Math.abs(value) >= 1000) return signed(fixed(value, 0));
    if (Math.abs(value) < 1e-4) return signed(d3.format(".2e")(value).replace("−", "-").replace(/e([+-])(\d)$/, "e$10$2"));
    return signed(d3.format(".4~r")(value).replace("−", "-"));
  },
  percent(value) {
    const size = Math.abs(100 * value);
    return signed(fixed(100 * value, size >= 1 ? 1 : size >= 0.1 ? 2 : 3)) + SPACE + "%";
  },
  seconds(value) {
    if (value > 0 && value < 0.1) return fixed(1000 * value, value < 0.001 ? 1 : 0) + SPACE + "ms";
    if (value < 60) return fixed(value, value < 10 ? 1 : 0) + SPACE + "s";
    const whole = Math.round(value), minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
    if (!hours) return minutes + SPACE + "min" + (whole % 60 ? ` ${whole % 60}${SPACE}s` : "");
    return fixed(hours, 0) + SPACE + "h" + (minutes % 60 ? ` ${minutes % 60}${SPACE}min` : "");
  },
  bytes(value) {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let unit = 0;
    for (; Math.abs(value) >= 1000 && unit < 4; unit++) value /= 1000;
    return fixed(value, unit && Math.abs(value) < 100 ? 1 : 0) + SPACE + units[unit];
  },
};

function shown(value, kind = "number") {
  if (value === null || value === undefined || value === "") return NOTHING;
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.map((item) => shown(item)).join(", ");
  if (typeof value === "object") return Object.entries(value).map(([name, item]) => `${name} ${shown(item)}`).join(", ");
  return typeof value === "string" ? value : format[kind](value);
}

const cut = (text, characters) => (text.length > characters ? text.slice(0, characters - 1) + "…" : text);

/** Runs a function once a burst of events has passed. */
function settled(milliseconds, run) {
  let waiting;
  return (...given) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => run(...given), milliseconds);
  };
}

/** The compressed data of the page. */
async function opened() {
  const binary = atob(document.getElementById("payload").textContent);
  const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/** Tells a screen reader what changed. */
const say = (text) => { document.getElementById("said").textContent = text; };

function tableOf(columns, rows, label) {
  const numeric = ({ type }) => type !== "text" && type !== "id";
  return el("div", { class: "scroll", tabIndex: 0, role: "group", "aria-label": label },
    el("table", {},
      el("thead", {}, el("tr", {}, columns.map((column) => el("th", { scope: "col", class: numeric(column) ? "num" : "" }, column.name)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((value, i) =>
        el("td", { class: numeric(columns[i]) ? "num" : columns[i].type === "id" ? "id" : "", dir: "auto" }, shown(value, columns[i].type))))))));
}

function figuresOf(figures) {
  const named = Object.entries(figures ?? {});
  return named.length ? el("dl", { class: "figures" }, named.map(([name, value]) =>
    el("div", {}, el("dt", { dir: "auto" }, name), el("dd", { dir: "auto" }, shown(value))))) : null;
}
