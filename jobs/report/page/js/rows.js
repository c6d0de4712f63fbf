// Example rows: search, chips, order, one card a row, two rows side by side.

const PAGE = 10, LONG = 500;
const ORDERS = {
  given: ["As listed", (rows) => rows],
  rank: ["Rank, first chosen first", (rows) => d3.sort(rows, (row) => row.rank ?? Infinity)],
  score: ["Score, highest first", (rows) => d3.sort(rows, (row) => -(row.score ?? -Infinity))],
  lowest: ["Score, lowest first", (rows) => d3.sort(rows, (row) => row.score ?? Infinity)],
  longest: ["Longest first", (rows) => d3.sort(rows, (row) => -row.size)],
  source: ["Source", (rows) => d3.sort(rows, (row) => row.source ?? "")],
};
const ANSWERS = new Set(["assistant", "gpt", "model", "chosen"]);

/** A text in a bubble, its beginning where it is long. */
function bubble(role, text, kind) {
  const said = el("p", { class: "said" + (text.length > LONG ? " clamped" : ""), dir: "auto" }, text);
  const more = text.length > LONG && el("button", {
    type: "button", class: "more", "aria-expanded": "false",
    on: { click: () => { const folded = said.classList.toggle("clamped"); more.setAttribute("aria-expanded", String(!folded)); more.textContent = folded ? "Show all" : "Show less"; } },
  }, "Show all");
  return el("div", { class: `bubble ${kind}` }, el("p", { class: "role" }, el("bdi", {}, cut(role, 40))), said, more);
}

async function copied(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = el("textarea", { value: text, readOnly: true, class: "sr-only" });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  const before = button.textContent;
  button.textContent = "Copied";
  say("Copied");
  setTimeout(() => { button.textContent = before; }, 1500);
}

const words = (row) => [row.id, row.own_id, row.source, row.file, row.verdict, row.raw, ...(row.messages ?? []).map(({ content }) => content), ...row.other.map(({ text }) => text)]
  .filter((text) => text).join("\n");

function talkOf(row) {
  const parts = (row.messages ?? []).map(({ role, content }) => bubble(role, content, ANSWERS.has(role) ? "answer" : "question"));
  if (row.raw !== null) parts.push(bubble("as it stands in the file", row.raw, "other"));
  for (const { title, text } of row.other) if (text !== null) parts.push(bubble(title, text, "other"));
  return parts.length ? el("div", { class: "talk" }, parts) : null;
}

function headOf(row) {
  const origin = [row.file && row.file + (row.position !== null ? `, row ${format.count(row.position)}` : ""), row.source && `source ${row.source}`, row.own_id && `own id ${row.own_id}`].filter(Boolean).join(" · ");
  return [
    el("header", {},
      el("div", { class: "tags" }, row.chips.map((chip, i) => el("span", { class: "tag" + (i ? "" : " main"), dir: "auto" }, chip))),
      el("div", { class: "strong" }, [row.rank !== null && `rank ${format.count(row.rank)}`, row.score !== null && `score ${format.number(row.score)}`].filter(Boolean).join(" · "))),
    row.verdict && el("p", { class: "verdict", dir: "auto" }, row.verdict),
    origin && el("p", { class: "origin", dir: "auto" }, origin),
  ];
}

class Rows {
  constructor(block, place, { title, kind }) {
    this.items = block.items.map((row) => ({ ...row, words: words(row).toLowerCase(), size: d3.sum(row.messages ?? [], ({ content }) => content.length) || (row.raw ?? "").length }));
    this.byId = new Map(this.items.map((row) => [row.id, row]));
    this.command = kind === "run" ? (id) => `raysift explain ${/^[\w./:-]+$/.test(title) ? title : `'${title.replaceAll("'", "'\\''")}'`} ${id}` : null;
    this.meanings = block.chips ?? {};
    this.chips = new Set();
    this.picked = [];
    this.shownRows = PAGE;
    this.build(place);
    this.update();
  }

  build(place) {
    const counts = d3.rollup(this.items.flatMap(({ chips }) => chips), (all) => all.length, (chip) => chip);
    const names = [...new Set([...Object.keys(this.meanings), ...counts.keys()])].filter((chip) => counts.has(chip));
    const sources = d3.sort(new Set(this.items.map(({ source }) => source).filter(Boolean)));
    const changed = () => { this.shownRows = PAGE; this.update(); };
    this.search = el("input", { type: "search", placeholder: "Words or an id", autocomplete: "off", on: { input: settled(120, changed) } });
    const option = ([value, name]) => el("option", { value }, cut(name, 60));
    this.source = el("select", { on: { change: changed } }, [["", "All sources"], ...sources.map((name) => [name, name])].map(option));
    this.order = el("select", { on: { change: changed } }, Object.entries(ORDERS).map(([value, [name]]) => option([value, name])));
    this.buttons = new Map(names.map((chip) => [chip, el("button", {
      type: "button", "aria-pressed": "false", title: this.meanings[chip] ?? "", dir: "auto",
      on: { click: () => { this.chips.has(chip) ? this.chips.delete(chip) : this.chips.add(chip); changed(); } },
    }, cut(chip, 80), el("span", {}, format.count(counts.get(chip))))]));
    this.status = el("p", { class: "status", role: "status" });
    this.cards = el("div", { class: "cards" });
    this.more = el("button", { type: "button", on: { click: () => this.showMore() } });
    place.replaceChildren(
      el("div", { class: "controls" },
        el("label", { class: "wide" }, "Search", this.search),
        sources.length > 1 && el("label", {}, "Source", this.source),
        el("label", {}, "Order", this.order)),
      el("div", { class: "chips", role: "group", "aria-label": "Show only rows with a chip" }, [...this.buttons.values()]),
      this.status, this.cards, el("div", { class: "foot" }, this.more));
  }

  found() {
    const wanted = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = this.items.filter((row) => (!this.chips.size || row.chips.some((chip) => this.chips.has(chip)))
      && (!this.source.value || row.source === this.source.value) && wanted.every((word) => row.words.includes(word)));
    return ORDERS[this.order.value][1](kept);
  }

  update() {
    const rows = this.found(), now = rows.slice(0, this.shownRows);
    for (const [chip, button] of this.buttons) button.setAttribute("aria-pressed", String(this.chips.has(chip)));
    this.status.textContent = rows.length ? `${format.count(now.length)} of ${format.count(rows.length)} rows` + (rows.length < this.items.length ? `, found among ${format.count(this.items.length)}` : "") : "No row matches. Clear the search or a chip.";
    this.cards.replaceChildren(...now.map((row) => this.card(row)));
    this.more.hidden = rows.length <= now.length;
    this.more.textContent = `Show ${format.count(Math.min(PAGE, rows.length - now.length))} more`;
  }

  showMore() {
    const first = this.shownRows;
    this.shownRows += PAGE;
    this.update();
    this.cards.children[first]?.focus();
  }

  card(row) {
    const pick = el("button", { type: "button", "aria-pressed": String(this.picked.includes(row)), on: { click: () => this.pick(row) } }, "Compare");
    const copyId = el("button", { type: "button", on: { click: () => copied(copyId, row.id) } }, "Copy id");
    const copyCommand = this.command && el("button", { type: "button", title: this.command(row.id), on: { click: () => copied(copyCommand, this.command(row.id)) } }, "Copy explain command");
    const near = row.nearest && el("p", { class: "origin" }, "Nearest chosen row: ", this.byId.has(row.nearest.id)
      ? el("button", { type: "button", class: "more id", on: { click: () => this.show(row.nearest.id) } }, row.nearest.id) : el("span", { class: "id" }, row.nearest.id), `, distance ${shown(row.nearest.distance)}`);
    const card = el("article", { class: "card" + (this.picked.includes(row) ? " picked" : ""), tabIndex: -1, "data-id": row.id, "aria-label": `Row ${row.id}` },
      headOf(row), talkOf(row), figuresOf(row.figures), near,
      el("div", { class: "tools" }, pick, copyId, copyCommand, el("span", { class: "id" }, row.id)));
    row.marked = (picked) => { pick.setAttribute("aria-pressed", String(picked)); card.classList.toggle("picked", picked); };
    return card;
  }

  /** Shows one row alone. */
  show(id) {
    this.only({ search: id });
    this.cards.firstElementChild?.focus();
  }

  /** Shows the rows of one chip or of one search, whatever was chosen before. */
  only({ chip, search = "" }) {
    this.chips = new Set(chip === undefined ? [] : [chip]);
    this.search.value = search;
    this.source.value = "";
    this.shownRows = PAGE;
    this.update();
    say(this.status.textContent);
  }

  pick(row) {
    const held = this.picked.includes(row);
    if (!held && this.picked.length === 2) this.picked.shift().marked(false);
    this.picked = held ? this.picked.filter((other) => other !== row) : [...this.picked, row];
    row.marked(!held);
    this.showTray();
  }

  showTray() {
    const tray = document.getElementById("tray"), two = this.picked.length === 2;
    tray.hidden = !this.picked.length;
    const compare = el("button", { type: "button", class: "main", disabled: !two, on: { click: () => this.sideBySide() } }, "Side by side");
    tray.replaceChildren(
      el("span", {}, two ? "Two rows picked" : "One row picked, pick another"), compare,
      el("button", { type: "button", on: { click: () => { for (const row of this.picked) row.marked(false); this.picked = []; this.showTray(); } } }, "Clear"));
    say(two ? "Two rows picked" : this.picked.length ? "One row picked" : "No row picked");
  }

  sideBySide() {
    const dialog = document.getElementById("side-by-side"), [one, two] = this.picked;
    const numbers = (row) => ({ score: row.score, rank: row.rank, characters: row.size, ...row.figures });
    const names = [...new Set([...Object.keys(numbers(one)), ...Object.keys(numbers(two))])].filter((name) => (numbers(one)[name] ?? numbers(two)[name] ?? null) !== null);
    const columns = [{ name: "", type: "text" }, { name: "first", type: "number" }, { name: "second", type: "number" }];
    dialog.replaceChildren(
      el("div", { class: "dialog-head" }, el("h2", { id: "side-by-side-title" }, "Two rows side by side"), el("button", { type: "button", on: { click: () => dialog.close() } }, "Close")),
      el("div", { class: "differences" }, tableOf(columns, names.map((name) => [name, numbers(one)[name], numbers(two)[name]]), "Figures of the two rows")),
      el("div", { class: "pair" }, [one, two].map((row) => el("article", { class: "card" }, headOf(row), talkOf(row), el("p", { class: "id" }, row.id)))));
    dialog.showModal();
  }
}
