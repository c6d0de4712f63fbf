// What a larger or a smaller budget would take: a slider over shares of the pool that redraws the mix of groups and the length.

function whatIf(block, place) {
  const lengthHeight = 190, around = 146;
  const at = Math.max(0, d3.minIndex(block.shares, (share) => Math.abs(share - block.budget)));
  const known = block.lengths?.some((length) => length !== null);
  const all = d3.sum(block.pool) || 1;
  const input = el("input", { type: "range", min: 0, max: block.shares.length - 1, step: 1, value: at, "aria-label": "Share of the pool to take" });
  const told = el("output", {}), mix = el("div", { class: "plot" }), length = el("div", { class: "plot" });
  const back = el("button", { type: "button", on: { click: () => { input.value = at; move(); } } }, `Back to the budget of this run, ${format.percent(block.budget)}`);
  const mixOf = (counts) => {
    const taken = d3.sum(counts) || 1;
    return {
      title: "", label: "Share of rows", type: "percent", groups: block.groups,
      series: [{ name: "pool", values: block.pool.map((rows) => rows / all) }, { name: "taken", values: counts.map((rows) => rows / taken) }],
      lift: counts.map((rows, j) => (block.pool[j] ? rows / taken / (block.pool[j] / all) : null)),
    };
  };
  const curve = (share) => ({
    title: "", x: "Share of the pool taken", y: "Mean characters", log_x: true, percent_x: true, marks: [{ value: share, label: format.percent(share) }],
    series: [{ name: "mean characters", points: block.shares.map((each, i) => [each, block.lengths[i]]) }],
  });
  function move() {
    const i = Number(input.value), share = block.shares[i], rows = d3.sum(block.counts[i]);
    const words = `${format.percent(share)} of the pool: ${format.count(rows)} rows` + (known && block.lengths[i] !== null ? `, ${format.count(Math.round(block.lengths[i]))} characters on average` : "");
    told.textContent = words;
    input.setAttribute("aria-valuetext", words);
    back.disabled = i === at;
    const width = Math.max(240, mix.clientWidth);
    mix.replaceChildren(bars(mixOf(block.counts[i]), { width, height: Number(place.dataset.height) - around - (known ? lengthHeight : 0) }));
    if (known) length.replaceChildren(lines(curve(share), { width, height: lengthHeight }));
  }
  input.addEventListener("input", move);
  place.classList.remove("plot");
  place.replaceChildren(
    el("div", { class: "slider" }, told, input),
    legendOf(["pool", "taken"], coloursOf([{ name: "pool" }, { name: "taken" }])), mix, known && length,
    el("div", { class: "tools" }, back));
  return move;
}
