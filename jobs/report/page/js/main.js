// What happens when the page opens: drawings take the room that is kept for them, controls get to work.

/** Draws a block into its place, with its legend, its views and its numbers as a table; draws anew when the width changes. */
function mount(block, place, rows) {
  const height = Number(place.dataset.height), labelRoom = Number(place.dataset.labelRoom ?? 0);
  let view = "rows", width = 0;
  const key = keyOf(block), legend = key && legendOf(...key);
  const redraw = () => {
    width = place.clientWidth;
    place.replaceChildren(DRAW[block.kind](block, { width: Math.max(width, 240), height: height - (legend ? 32 : 0), labelRoom, view }));
  };
  if (legend) {
    legend.style.marginBottom = "4px";
    place.before(legend);
  }
  redraw();
  if (block.kind === "map") place.addEventListener("click", () => {
    const point = place.firstElementChild.value;
    if (point && rows()?.byId.has(point.id)) rows().show(point.id);
  });
  const figure = place.closest("figure"), views = figure.querySelector(".views");
  views?.append(...viewsOf((chosen) => { view = chosen; redraw(); }));
  const table = figure.querySelector(".as-table");
  table.addEventListener("toggle", () => {
    if (table.open && table.children.length === 1) table.append(tableOf(...asTable[block.kind](block), block.title || "Table"));
  });
  return () => { if (place.clientWidth !== width) redraw(); };
}

function viewsOf(choose) {
  const buttons = Object.entries(HISTOGRAM_VIEWS).map(([view, name]) => el("button", { type: "button", "aria-pressed": String(view === "rows"), "data-view": view }, name));
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      choose(button.dataset.view);
    });
  }
  return buttons;
}

function mountAll({ title, kind, blocks }) {
  const redraws = [];
  let rows = null;
  for (const place of document.querySelectorAll("[data-block]")) {
    const block = blocks[place.dataset.block];
    if (EMPTY[block.kind]?.(block)) place.replaceChildren(el("p", { class: "muted" }, "Nothing to draw."));
    else if (block.kind === "rows") rows = new Rows(block, place, { title, kind });
    else if (block.kind === "funnel") redraws.push(() => place.replaceChildren(stageBar(block, { width: Math.max(place.clientWidth, 200), height: 14, part: Number(place.dataset.part) })));
    else if (block.kind === "what_if") redraws.push(whatIf(block, place));
    else redraws.push(mount(block, place, () => rows));
  }
  for (const redraw of redraws) redraw();
  let width = document.documentElement.clientWidth;
  addEventListener("resize", settled(100, () => {
    if (width === document.documentElement.clientWidth) return;
    width = document.documentElement.clientWidth;
    for (const redraw of redraws) redraw();
  }));
  for (const button of document.querySelectorAll("button[data-chip]")) {
    if (!rows?.buttons.has(button.dataset.chip)) button.hidden = button.matches(".alert button");
    else button.addEventListener("click", () => {
      rows.only({ chip: button.dataset.chip });
      document.querySelector(".rows").closest("section").scrollIntoView();
      rows.buttons.get(button.dataset.chip).focus({ preventScroll: true });
    });
  }
}

/** The section in sight, marked in the navigation. */
function follow() {
  const links = new Map([...document.querySelectorAll(".sections a")].map((link) => [link.hash.slice(1), link]));
  const sections = [...document.querySelectorAll("main > section")];
  const nav = document.querySelector(".sections");
  let current = null;
  const look = () => {
    const line = innerHeight * 0.3;
    const end = innerHeight + scrollY >= document.documentElement.scrollHeight - 4;
    const found = end ? sections.at(-1) : sections.findLast((section) => section.getBoundingClientRect().top <= line) ?? sections[0];
    if (!found || found.id === current) return;
    links.get(current)?.removeAttribute("aria-current");
    current = found.id;
    const link = links.get(current);
    link.setAttribute("aria-current", "true");
    nav.scrollLeft = link.offsetLeft - nav.clientWidth / 2 + link.offsetWidth / 2;
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; look(); });
  }, { passive: true });
  look();
}

function themes() {
  const button = document.getElementById("theme"), names = { "": "automatic", light: "light", dark: "dark" }, root = document.documentElement;
  const told = () => { button.textContent = `Theme: ${names[root.dataset.theme ?? ""]}`; };
  button.addEventListener("click", () => {
    const keys = Object.keys(names), next = keys[(keys.indexOf(root.dataset.theme ?? "") + 1) % keys.length];
    if (next) root.dataset.theme = next;
    else delete root.dataset.theme;
    try { localStorage.setItem("raysift-theme", next); } catch { /* as when it was read */ }
    told();
  });
  told();
}

follow();
themes();
for (const button of document.querySelectorAll("button.copy")) button.addEventListener("click", () => copied(button, button.nextElementSibling.textContent));
try {
  mountAll(await opened());
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
  performance.mark("raysift-drawn");
} catch (error) {
  const failed = document.getElementById("failed");
  failed.textContent = `The plots and the example rows could not be opened: ${error.message}. A browser of 2024 or later is needed; report.json holds the same.`;
  failed.hidden = false;
  throw error;
}
