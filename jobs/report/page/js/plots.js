// Drawings by Observable Plot: a function from a block and a size to an element. Colours are CSS variables, so a change of theme draws nothing anew.

const COLOURS = ["var(--s1)", "var(--s2)", "var(--s3)", "var(--s4)", "var(--s5)", "var(--s6)", "var(--s7)"];
const POOL = "var(--s0)";
const BACKGROUND = /^(pool|all rows|the pool|kept pool)$/i;
const OUTLINE = /^null$/i; // what was expected is a line over what was found

/** The pool stands back in grey, as does a curve among single points; what was chosen has a colour. */
function coloursOf(series) {
  let next = 0;
  const points = series.some(({ dots }) => dots);
  return series.map(({ name, dots }) => (BACKGROUND.test(name) || (points && !dots) ? POOL : COLOURS[next++ % COLOURS.length]));
}

function legendOf(names, colours) {
  return el("ul", { class: "legend" }, names.map((name, i) => {
    const swatch = el("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = colours[i];
    return el("li", {}, swatch, el("bdi", {}, cut(name, 60)));
  }));
}

const pen = document.createElement("canvas").getContext("2d");

/** Pixels that a text takes in the font of the page. */
function widthOf(text, size = 12) {
  pen.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
  return pen.measureText(text).width;
}

/** As much of a text as fits. */
function fitted(text, pixels, size = 12) {
  if (text.length < 200 && widthOf(text, size) <= pixels) return text;
  let letters = Math.min(text.length, Math.ceil(pixels / 3));
  while (letters > 1 && widthOf(cut(text, letters), size) > pixels) letters--;
  return cut(text, letters);
}

const widest = (texts, most) => Math.ceil(Math.min(most, Math.max(20, ...texts.map((text) => widthOf(cut(text, 80))))));

/** Numbers that stand near each other with the same number of decimals: so many digits for the largest. */
function evenly(values, digits) {
  const known = values.filter((value) => value !== null && value !== undefined), largest = Math.max(0, ...known.map(Math.abs));
  if (known.every(Number.isInteger) && digits > 2) return format.number;
  const places = Math.max(largest < 10 ? 2 : 0, Math.min(6, digits - 1 - Math.floor(Math.log10(largest || 1))));
  const write = d3.format(`,.${places}f`);
  return (value) => signed(write(value).replace("−", "-"));
}

/** A plot with what all of them share. Its own style element stays outside: the page's policy allows one sheet, which holds its rules. */
function plotted(options, label) {
  const plot = Plot.plot({
    style: { fontFamily: "inherit", fontSize: "12px", background: "none", overflow: "visible" },
    ...options,
  });
  for (const style of plot.querySelectorAll("style")) style.remove();
  const svg = plot.tagName.toLowerCase() === "svg" ? plot : plot.querySelector("svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  return plot;
}

const TIP = { fill: "var(--surface)", stroke: "var(--muted)", fontSize: 12, lineHeight: 1.35, textPadding: 9 };
const MARK_LINE = { stroke: "var(--ink)", strokeWidth: 1.25, strokeDasharray: "4 3" };

/** Vertical lines at named values, their names beside them on the side that has room, every other one a line lower. */
function marked(marks, low, high, log = false) {
  const kept = d3.sort(marks.filter(({ value }) => value !== null && value >= low && value <= high), ({ value }) => value);
  const along = log ? Math.log : Number;
  const left = (mark) => along(mark.value) > along(low) + 0.6 * (along(high) - along(low));
  const names = kept.map((mark, i) => Plot.text([mark], {
    x: "value", text: ({ label }) => cut(label, 40), frameAnchor: "top", dx: left(mark) ? -3 : 3, dy: i % 2 ? 3 : -5, lineAnchor: i % 2 ? "top" : "bottom", textAnchor: left(mark) ? "end" : "start",
    fill: "var(--ink)", stroke: "var(--surface)", strokeWidth: 4, fontWeight: 600,
  }));
  return kept.length ? [Plot.ruleX(kept, { x: "value", ...MARK_LINE }), ...names] : [];
}

/** Names beside single points, as more of them may stand in one drawing than there are colours. */
function named(points, low, high) {
  const left = ({ x }) => x > low + 0.7 * (high - low);
  return [[points.filter(left), "end", -10], [points.filter((d) => !left(d)), "start", 10]].map(([some, textAnchor, dx]) =>
    Plot.text(some, { x: "x", y: "y", text: (d) => cut(d.series, 30), textAnchor, dx, fill: "var(--ink)", stroke: "var(--surface)", strokeWidth: 3 }));
}

const axisNumber = (value) => (Math.abs(value) >= 10000 ? d3.format("~s")(value).replace("G", "B") : format.number(value));

function bars(block, { width, height }) {
  const colours = coloursOf(block.series), kind = block.type ?? "number";
  const data = block.groups.flatMap((group, i) => block.series.map((series, j) => ({
    group, series: series.name, value: series.values[i], low: series.low?.[i], high: series.high?.[i], fill: colours[j],
    lift: j === block.series.length - 1 ? block.lift?.[i] : null,
  }))).filter(({ value }) => value !== null);
  const ends = data.flatMap(({ value, high, low }) => [value, high ?? value, low ?? value]);
  const room = widest(block.groups, 0.36 * width), even = evenly(data.map(({ value }) => value), 3);
  const write = (value) => (kind === "number" ? even(value) : shown(value, kind));
  const told = (d) => `${d.group}\n${d.series}: ${shown(d.value, kind)}` + (d.low !== null && d.low !== undefined ? ` (${shown(d.low, kind)} to ${shown(d.high, kind)})` : "");
  const ranged = data.filter(({ low, high }) => low !== null && high !== null && low !== undefined && high !== undefined);
  const label = (d) => write(d.value) + (d.lift !== null && d.lift !== undefined ? `  ×${format.number(Number(d.lift.toPrecision(2)))}` : "");
  return plotted({
    width, height, marginLeft: room + 14, marginTop: 6, marginBottom: 38, marginRight: widest(data.map(label), 120) + 12,
    x: { label: block.label, domain: [Math.min(0, ...ends), Math.max(...ends, kind === "percent" ? 0.001 : 1e-12)], nice: true, grid: true, ticks: Math.max(2, Math.floor(width / 130)), tickFormat: (value) => (kind === "percent" ? format.percent(value) : axisNumber(value)), labelArrow: "none", labelAnchor: "center" },
    y: { axis: null, domain: block.series.map(({ name }) => name), padding: 0.08 },
    fy: { label: null, domain: block.groups, padding: 0.28, axis: null },
    color: { type: "identity" },
    marks: [
      Plot.axisFy({ anchor: "left", tickFormat: (name) => fitted(name, room), label: null, tickSize: 0, tickPadding: 8, fill: "var(--ink)" }),
      Plot.barX(data, { x: "value", y: "series", fy: "group", fill: "fill", rx2: 2 }),
      Plot.ruleY(ranged, { x1: "low", x2: "high", y: "series", fy: "group", stroke: "var(--ink)", strokeWidth: 1.2, marker: "tick" }),
      Plot.text(data, { x: (d) => Math.max(d.value, d.high ?? d.value, 0), y: "series", fy: "group", text: label, textAnchor: "start", dx: 6, fontSize: block.groups.length > 12 ? 11 : 12, fill: (d) => (d.lift !== null && d.lift !== undefined ? "var(--ink)" : "var(--muted)") }),
      Plot.ruleX([0], { stroke: "var(--muted)" }),
      Plot.tip(data, Plot.pointerY({ x: "value", y: "series", fy: "group", title: told, ...TIP })),
    ],
  }, `${block.title || block.label}: bars of ${block.groups.length} groups, ${block.series.map(({ name }) => name).join(" and ")}`);
}

const HISTOGRAM_VIEWS = { rows: "Rows", share: "Share of each", log: "Rows, log scale" };

function histogram(block, { width, height, view = "rows" }) {
  const colours = coloursOf(block.series), log = view === "log";
  const data = block.series.flatMap((series, j) => {
    const all = view === "share" ? d3.sum(series.counts) || 1 : 1;
    return series.counts.map((count, i) => ({ x1: block.edges[i], x2: block.edges[i + 1], count, y: count / all, fill: colours[j], series: series.name }));
  }).filter(({ count }) => count > 0);
  const low = block.edges[0], high = block.edges.at(-1);
  const together = d3.groups(data, ({ x1 }) => x1).map(([, same]) => ({
    x: (same[0].x1 + same[0].x2) / 2, y: Math.max(...same.map(({ y }) => y)),
    title: `${shown(same[0].x1)} to ${shown(same[0].x2)}\n` + same.map((d) => `${d.series}: ${format.count(d.count)}`).join("\n"),
  }));
  return plotted({
    width, height, marginLeft: 56, marginTop: 22, marginBottom: 38, marginRight: 14,
    x: { label: block.label, domain: [low, high], ticks: Math.max(3, Math.floor(width / 90)), tickFormat: axisNumber, labelArrow: "none", labelAnchor: "center" },
    y: { label: null, type: log ? "log" : "linear", domain: log ? [0.8, Math.max(2, ...data.map(({ y }) => y))] : [0, Math.max(1e-9, ...data.map(({ y }) => y))], grid: true, ticks: 5, tickFormat: log ? (value) => (Number.isInteger(Math.log10(value)) ? axisNumber(value) : "") : view === "share" ? format.percent : axisNumber },
    color: { type: "identity" },
    marks: [
      Plot.rectY(data.filter(({ series }) => !OUTLINE.test(series)), { x1: "x1", x2: "x2", y1: log ? 0.8 : 0, y2: "y", fill: "fill", fillOpacity: (d) => (d.fill === POOL || block.series.length === 1 ? 1 : 0.85), insetLeft: 0.5, insetRight: 0.5 }),
      Plot.ruleY(data.filter(({ series }) => OUTLINE.test(series)), { x1: "x1", x2: "x2", y: "y", stroke: "fill", strokeWidth: 2 }),
      Plot.ruleY([log ? 0.8 : 0], { stroke: "var(--muted)" }),
      ...marked(block.marks ?? [], low, high),
      Plot.tip(together, Plot.pointerX({ x: "x", y: "y", title: "title", ...TIP })),
    ],
  }, `${block.title || block.label}: distribution of ${block.series.map(({ name }) => name).join(" and ")} from ${shown(low)} to ${shown(high)}`);
}

function lines(block, { width, height }) {
  const colours = coloursOf(block.series);
  const all = block.series.flatMap((series, j) => series.points.map(([x, y], i) => ({ x, y, low: series.low?.[i], high: series.high?.[i], stroke: colours[j], series: series.name, dots: series.dots })))
    .filter(({ x, y }) => x !== null && y !== null && (!block.log_x || x > 0));
  const ranged = all.filter(({ low, high }) => low !== null && high !== null && low !== undefined && high !== undefined);
  const single = block.series.some(({ dots }) => dots);
  const few = new Set(block.series.filter((series) => series.dots || (!single && series.points.length <= 30)).map(({ name }) => name));
  const [low, high] = d3.extent(all, ({ x }) => x);
  return plotted({
    width, height, marginLeft: 58, marginTop: 26, marginBottom: 38, marginRight: 30,
    x: { label: block.x, type: block.log_x ? "log" : "linear", ticks: Math.max(3, Math.floor(width / 100)), tickFormat: block.percent_x ? format.percent : axisNumber, labelArrow: "none", labelAnchor: "center", nice: !block.log_x },
    y: { label: block.y, nice: true, grid: true, ticks: 5, tickFormat: axisNumber, labelArrow: "none" },
    color: { type: "identity" }, r: { type: "identity" },
    marks: [
      Plot.areaY(ranged.filter((d) => !d.dots), { x: "x", y1: "low", y2: "high", z: "series", fill: "stroke", fillOpacity: 0.15 }),
      Plot.ruleX(ranged.filter((d) => d.dots), { x: "x", y1: "low", y2: "high", stroke: "stroke", marker: "tick" }),
      Plot.line(all.filter((d) => !d.dots), { x: "x", y: "y", z: "series", stroke: "stroke", strokeWidth: 2 }),
      Plot.dot(all.filter((d) => few.has(d.series)), { x: "x", y: "y", fill: "stroke", r: (d) => (d.dots ? 6 : 3), stroke: "var(--surface)" }),
      ...named(all.filter((d) => d.dots), low, high),
      ...marked(block.marks ?? [], low, high, block.log_x),
      Plot.tip(all, Plot.pointer({ x: "x", y: "y", title: (d) => `${d.series}\n${block.x}: ${shown(d.x)}\n${block.y}: ${shown(d.y)}` + (d.low !== null && d.low !== undefined ? ` (${shown(d.low)} to ${shown(d.high)})` : ""), ...TIP })),
    ],
  }, `${block.title || block.y}: ${block.y} over ${block.x} of ${block.series.map(({ name }) => name).join(", ")}`);
}

function heatmap(block, { width, height, labelRoom }) {
  const upright = labelRoom > 40, room = widest(block.rows, 0.34 * width), above = upright ? (labelRoom - 14) / Math.sin(Math.PI * 50 / 180) : Infinity;
  const marginLeft = room + 14, marginRight = upright ? Math.ceil(0.65 * Math.min(above, widest([block.columns.at(-1)], 400))) : 12;
  const cells = (each) => marginLeft + each * block.columns.length + marginRight;
  const wide = Math.max(Math.min(width, cells(130)), cells(46));
  const data = block.rows.flatMap((row, i) => block.columns.map((column, j) => ({ row: i, column: j, value: block.values[i][j], title: `${row} · ${column}\n${block.label}: ${shown(block.values[i][j])}` })));
  const values = data.map(({ value }) => value).filter((value) => value !== null);
  const largest = Math.max(...values.map(Math.abs));
  const [least, most] = block.diverging ? [0, largest] : [d3.min(values) ?? 0, d3.max(values) ?? 0];
  const write = evenly(values, 2);
  const strength = ({ value }) => (value === null ? 0 : 0.06 + 0.94 * (most > least ? (Math.abs(value - (block.diverging ? 0 : least)) / (most - least)) : 0.5));
  return plotted({
    width: wide, height, marginLeft, marginTop: labelRoom, marginBottom: 8, marginRight,
    x: { domain: d3.range(block.columns.length), axis: null, padding: 0.04 },
    y: { domain: d3.range(block.rows.length), axis: null, padding: 0.06 },
    color: { type: "identity" }, opacity: { type: "identity" },
    marks: [
      Plot.axisX({ anchor: "top", tickSize: 0, label: null, tickFormat: (i) => fitted(block.columns[i], upright ? above : 120), tickRotate: upright ? -50 : 0, textAnchor: upright ? "start" : "middle", fill: "var(--ink)", dx: upright ? 4 : 0 }),
      Plot.axisY({ anchor: "left", tickSize: 0, label: null, tickFormat: (i) => fitted(block.rows[i], room), fill: "var(--ink)" }),
      Plot.cell(data, { x: "column", y: "row", fill: (d) => (d.value === null ? "var(--raised)" : d.value < 0 && block.diverging ? "var(--s2)" : "var(--s1)"), fillOpacity: (d) => (d.value === null ? 1 : strength(d)), rx: 3 }),
      Plot.text(data, { x: "column", y: "row", text: (d) => (d.value === null ? NOTHING : write(d.value)), fill: (d) => `var(--${strength(d) > 0.85 ? "on-accent" : strength(d) > 0.55 ? "on-middle" : "ink"})`, fontSize: 11 }),
      Plot.tip(data, Plot.pointer({ x: "column", y: "row", title: "title", ...TIP })),
    ],
  }, `${block.title || block.label}: ${block.label} of ${block.rows.length} rows by ${block.columns.length} columns`);
}

function map(block, { width, height }) {
  const cells = block.density.flatMap((counts, i) => counts.map((count, j) => ({ x1: block.x[j], x2: block.x[j + 1], y1: block.y[i], y2: block.y[i + 1], count }))).filter(({ count }) => count > 0);
  const most = Math.log1p(Math.max(1, ...cells.map(({ count }) => count)));
  const chosen = block.points.filter(({ rank }) => rank !== null), others = block.points.filter(({ rank }) => rank === null);
  const axis = (which) => `${which} direction` + (block.explained?.[which === "First" ? 0 : 1] ? `, ${format.percent(block.explained[which === "First" ? 0 : 1])} of the spread` : "");
  return plotted({
    width, height, marginLeft: 28, marginBottom: 34, marginTop: 8, marginRight: 8, inset: 8,
    x: { label: axis("First"), ticks: 0, labelArrow: "none", labelAnchor: "center", domain: [block.x[0], block.x.at(-1)] },
    y: { label: axis("Second"), ticks: 0, labelArrow: "none", labelAnchor: "center", domain: [block.y[0], block.y.at(-1)] },
    color: { type: "identity" }, opacity: { type: "identity" },
    marks: [
      Plot.frame({ stroke: "var(--line)" }),
      Plot.rect(cells, { x1: "x1", x2: "x2", y1: "y1", y2: "y2", fill: "var(--s7)", fillOpacity: (d) => 0.05 + 0.55 * (Math.log1p(d.count) / most), shapeRendering: "crispEdges" }),
      Plot.dot(others, { x: "x", y: "y", r: 2, stroke: "var(--muted)", strokeWidth: 0.8 }),
      Plot.dot(chosen, { x: "x", y: "y", r: 2.6, fill: "var(--s2)", stroke: "var(--surface)", strokeWidth: 0.6 }),
      Plot.tip(block.points, Plot.pointer({ x: "x", y: "y", maxRadius: 20, title: (d) => d.id + (d.rank === null ? "\nnot chosen" : `\ntaken as number ${format.count(d.rank + 1)}`), ...TIP })),
    ],
  }, `${block.title || "Map"}: density of the pool and ${chosen.length} chosen rows`);
}

/** One stage of the funnel: what stayed, what was rejected for each reason, what failed, as shares of the widest stage. */
function stageBar(block, { width, height, part }) {
  const stage = block.stages[part], widest = Math.max(1, ...block.stages.map(({ rows_in }) => rows_in));
  const parts = [{ name: "kept", count: stage.kept, fill: "var(--s1)" },
    ...Object.entries(stage.rejected).map(([name, count]) => ({ name, count, fill: "var(--s2)" })), { name: "failed", count: stage.failed, fill: "var(--s6)" }];
  const told = parts.filter(({ count }) => count).map(({ name, count }) => `${name}: ${format.count(count)}`);
  return plotted({
    width, height, margin: 0, axis: null, x: { domain: [0, widest] }, color: { type: "identity" }, opacity: { type: "identity" },
    marks: [Plot.barX(parts.filter(({ count }) => count), Plot.stackX({ x: "count", fill: "fill", fillOpacity: (d) => (d.fill === "var(--s2)" ? 0.6 : 1), insetRight: 1, title: (d) => `${d.name}: ${format.count(d.count)}`, order: null }))],
  }, `${stage.stage}: ${told.join(", ")}`);
}

/** The numbers of a drawing, for those who would rather read them. */
const asTable = {
  bars: (block) => [
    [{ name: "", type: "text" }, ...block.series.flatMap(({ name, low }) => [{ name, type: block.type ?? "number" }, ...(low ? [{ name: `${name}, from`, type: block.type ?? "number" }, { name: "to", type: block.type ?? "number" }] : [])]), ...(block.lift ? [{ name: "lift", type: "number" }] : [])],
    block.groups.map((group, i) => [group, ...block.series.flatMap((series) => [series.values[i], ...(series.low ? [series.low[i], series.high[i]] : [])]), ...(block.lift ? [block.lift[i]] : [])]),
  ],
  histogram: (block) => [
    [{ name: "from", type: "number" }, { name: "to", type: "number" }, ...block.series.map(({ name }) => ({ name, type: "count" }))],
    block.edges.slice(0, -1).map((edge, i) => [edge, block.edges[i + 1], ...block.series.map(({ counts }) => counts[i])]),
  ],
  lines: (block) => [
    [{ name: "series", type: "text" }, { name: block.x, type: "number" }, { name: block.y, type: "number" }],
    block.series.flatMap(({ name, points }) => points.map(([x, y]) => [name, x, y])),
  ],
  heatmap: (block) => [
    [{ name: block.label, type: "text" }, ...block.columns.map((name) => ({ name, type: "number" }))],
    block.rows.map((row, i) => [row, ...block.values[i]]),
  ],
  map: (block) => [
    [{ name: "taken as", type: "count" }, { name: "id", type: "id" }, { name: "first", type: "number" }, { name: "second", type: "number" }],
    block.points.slice(0, 200).map(({ x, y, id, rank }) => [rank === null ? null : rank + 1, id, x, y]),
  ],
};

/** Names and colours of what a drawing holds, where it holds more than one thing. */
function keyOf(block) {
  if (block.kind === "map") return [["chosen", "not chosen, a sample", "the pool, stronger where it is denser"], ["var(--s2)", "var(--muted)", "color-mix(in srgb, var(--s7) 45%, transparent)"]];
  return (block.series?.length ?? 0) > 1 ? [block.series.map(({ name }) => name), coloursOf(block.series)] : null;
}

const EMPTY = {
  bars: ({ groups, series }) => !groups.length || series.every(({ values }) => values.every((value) => value === null)),
  histogram: ({ edges, series }) => edges.length < 2 || !series.some(({ counts }) => counts.some(Boolean)),
  lines: ({ series }) => series.every(({ points }) => points.every(([x, y]) => x === null || y === null)),
  heatmap: ({ rows, columns }) => !rows.length || !columns.length,
  map: ({ density, points }) => !points.length && !density.some((counts) => counts.some(Boolean)),
  what_if: ({ shares, groups }) => !shares.length || !groups.length,
};

const DRAW = { bars, histogram, lines, heatmap, map };
