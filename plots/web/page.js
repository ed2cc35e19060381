// Draws the chart for the axes, methods and budget that are chosen. The data and the chart's form are those that
// plots/page.py embeds; `recommend` and `front` follow combination/recommendation.py, which the tests compare them with.
const page = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const quantity = Object.fromEntries(page.quantities.map((own) => [own.column, own]));
const value = (row, own) => (row[own.column] ?? null) === null ? null : row[own.column] / own.unit;
let drawn = [];      // the models in the chart, from left to right
let shown = null;    // the model that the details are of
let kept = false;    // whether it stays when the pointer leaves
let view = null;
let drawing = Promise.resolve();

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ---- the front, and the best model for a budget

// Whether no other row is as good in all of `wanted` ([column, whether more is better]) and better in one.
function front(rows, wanted) {
  const figures = rows.map((row) => wanted.map(([column, more]) => (more ? -1 : 1) * (row[column] ?? NaN)));
  const beats = (one, other) => one.every((own, i) => own <= other[i]) && one.some((own, i) => own < other[i]);
  return figures.map((own) => own.every((number) => !Number.isNaN(number)) && !figures.some((one) => beats(one, own)));
}

function recommend(models, budget) {
  const bounds = page.budgets.filter((own) => own.name in budget);
  const rows = models.filter((row) => bounds.every((own) => (row[own.column] ?? null) !== null));
  if (!bounds.length || !rows.length) return null;
  const excess = rows.map((row) => Math.max(...bounds.map(({ name, column, unit, least }) =>
    least ? (1 - row[column]) / (1 - budget[name]) : row[column] / unit / budget[name])));
  const within = rows.filter((_, i) => excess[i] <= 1);
  const wanted = [["validation_accuracy", true], ...page.costs.map((column) => [column, false])];
  const best = front(within.length ? within : rows, wanted);
  if (!within.length) {
    const nearest = rows.map((row, i) => ({ row, excess: excess[i] + (best[i] ? 0 : 1e-9) }));
    return { row: nearest.reduce((a, b) => (b.excess < a.excess ? b : a)).row, within: 0 };
  }
  const order = ["size_kb", "latency_ms", "macs"].find((name) => "accuracy" in budget && !(name in budget)) ?? "accuracy";
  const { column, least, best: words } = page.budgets.find((own) => own.name === order);
  const sign = least ? -1 : 1;
  const chosen = within.filter((_, i) => best[i])
    .sort((a, b) => sign * (a[column] - b[column]) || a.archive_bytes - b.archive_bytes)[0];
  return { row: chosen, within: within.length, words };
}

// ---- controls

function budgets() {
  const found = {};
  for (const slider of $("budgets").querySelectorAll("input")) {
    const bound = slider.steps[slider.value];
    if (bound !== null) found[slider.name] = bound;
  }
  return found;
}

// The values that models have, rounded to three digits towards what still allows them; null for no bound.
function steps({ column, unit, least }) {
  const values = page.models.map((row) => row[column]).filter((own) => (own ?? null) !== null);
  const digit = (own) => 10 ** (Math.floor(Math.log10(own)) - 2);
  const rounded = (own) => least ? Math.min(0.999, Math.floor(own * 1000) / 1000)
    : Number((Math.ceil(own / digit(own) - 1e-9) * digit(own)).toPrecision(3));
  const all = [...new Set(values.map((own) => rounded(own / unit)))].sort((a, b) => a - b);
  return least ? [null, ...all] : [...all, null];
}

const NAMES = {
  accuracy: ["accuracy", "%"], size_kb: ["archive", "KB"], latency_ms: ["latency", "ms"], macs: ["operations", "M MACs"],
  worst_class: ["worst class", "%"], robustness: ["corrupted", "%"],
};

function says(own, bound) {
  const unit = NAMES[own.name]?.[1] ?? "";
  if (bound === null) return "any";
  if (own.least) return `\u2265 ${(100 * bound).toFixed(1)} ${unit}`;
  return `\u2264 ${(own.name === "macs" ? bound / 1e6 : bound).toLocaleString("en", { maximumSignificantDigits: 3 })} ${unit}`;
}

function fill() {
  for (const axis of ["x", "y"])
    $(axis).append(...page.quantities.map((own) => new Option(own.title, own.column)));
  for (const own of page.methods) $("methods").append(tick(own.name, own.shape, own.colour));
  if (page.published.length) $("methods").append(tick("published study", "circle", null));
  for (const own of page.budgets) {
    const slider = make("input", { type: "range", name: own.name, min: 0, step: 1 });
    slider.steps = steps(own);
    slider.max = slider.steps.length - 1;
    const output = make("output");
    slider.tell = () => {
      output.textContent = says(own, slider.steps[slider.value]);
      slider.setAttribute("aria-valuetext", output.textContent);
    };
    slider.addEventListener("input", slider.tell);
    $("budgets").append(make("label", {}, NAMES[own.name]?.[0] ?? own.name, slider, output));
  }
  defaults();
  $("controls").addEventListener("input", redraw);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("again").addEventListener("click", () => { defaults(); redraw(); });
}

// The choices at first: all methods, accuracy against bytes, and the budget that the page starts with.
function defaults() {
  $("controls").reset();
  $("x").value = "archive_bytes";
  $("y").value = "accuracy";
  for (const slider of $("budgets").querySelectorAll("input")) {
    const wanted = page.start[slider.name];
    const loose = slider.steps.indexOf(null);
    const at = wanted === undefined ? -1 : slider.steps.findLastIndex((bound) => bound !== null && bound <= wanted);
    slider.value = at < 0 ? loose : at;
    slider.tell();
  }
  kept = false;
}

function tick(name, shape, colour) {
  const label = make("label", {}, make("input", { type: "checkbox", name, defaultChecked: true }));
  label.insertAdjacentHTML("beforeend", `<svg viewBox="-1.2 -1.2 2.4 2.4" aria-hidden="true"><path d="${SYMBOLS[shape] ?? shape}"
    fill="${colour ? themed(colour) : "none"}" stroke="${colour ? "none" : "currentColor"}" stroke-width="0.25"/></svg>`);
  label.append(name);
  return label;
}

const SYMBOLS = {
  circle: "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z", square: "M-.9,-.9H.9V.9H-.9Z", diamond: "M0,-1L1,0L0,1L-1,0Z",
  cross: "M-1,-.35H-.35V-1H.35V-.35H1V.35H.35V1H-.35V.35H-1Z", "triangle-up": "M0,-1L1,.9H-1Z",
  "triangle-down": "M0,1L1,-.9H-1Z", "triangle-left": "M-1,0L.9,-1V1Z", "triangle-right": "M1,0L-.9,-1V1Z",
};
const themed = (colour) => (colour === "#000000" ? "currentColor" : colour);

// ---- the chart

function rows() {
  const [across, up] = [quantity[$("x").value], quantity[$("y").value]];
  const on = new Set([...$("methods").querySelectorAll("input:checked")].map((box) => box.name));
  const logs = { x: $("log-x").checked, y: $("log-y").checked };
  const models = page.models.filter((row) => on.has(row.method));
  const choice = recommend(models, budgets());
  const floor = (own) => own.more && !$("whole").checked
    ? (Math.max(...page.models.map((row) => row[own.column] ?? 0)) - page.failed) / own.unit : -Infinity;
  const place = (row) => ({
    ...row,
    x: Math.max(value(row, across), floor(across)),
    y: Math.max(value(row, up), floor(up)),
    below: value(row, across) < floor(across) || value(row, up) < floor(up),
  });
  const there = (row) => [[across, logs.x], [up, logs.y]].every(([own, log]) =>
    value(row, own) !== null && (!log || value(row, own) > 0));
  const best = front(models, [[across.by, across.more], [up.by, up.more]]);
  const bounded = up.column === "accuracy";
  const chart = models.map((row, i) => ({ ...row, front: best[i], ring: row === choice?.row })).filter(there).map(place)
    .map((row) => ({ ...row, low: bounded ? Math.max(row.low, floor(up)) : null, high: bounded ? Math.max(row.high, floor(up)) : null }));
  const reported = on.has("published study") ? page.published.filter(there).map(place) : [];
  return { across, up, logs, choice, chart, reported, hidden: page.models.length - models.length };
}

// The chart's form with these rows, in the colours of the theme.
function form({ across, up, logs, chart, reported }) {
  const style = getComputedStyle(document.body);
  const [ink, quiet, line] = [style.color, ...["--quiet", "--line"].map(resolved)];
  const spec = JSON.parse(JSON.stringify(page.chart).replaceAll(page.ink, ink).replaceAll("#000000", ink));
  delete spec.$schema;  // the version that notebooks need; the one here is newer
  spec.data.values = chart;
  spec.layer.find((own) => own.name === "reported").data.values = reported;
  spec.layer.push({
    name: "chosen", data: { name: "chosen", values: [] },
    mark: { type: "point", shape: "circle", size: 200, strokeWidth: 2.5, stroke: resolved("--link"), aria: false },
  });
  for (const [name, own] of [["x", across], ["y", up]]) {
    const domain = span([...chart, ...reported], name);
    const scale = { type: logs[name] ? "log" : "linear", domain, nice: false, padding: 14 };
    const axis = { format: ",~r", labelOverlap: true, ...(logs[name] ? { values: ticks(...domain) } : { tickCount: 7 }) };
    Object.assign(spec.encoding[name], { title: own.title, scale, axis });
    const bound = page.budgets.find((one) => one.column === own.column);
    const limit = bound && budgets()[bound.name];
    if (limit !== undefined)
      spec.layer.unshift({
        name: "bound", mark: { type: "rule", strokeDash: [6, 4], color: quiet, clip: true, aria: false },
        encoding: { x: null, y: null, [name]: { datum: limit * (bound.least ? 1 : bound.unit) / own.unit } },
      });
  }
  for (const layer of spec.layer)
    for (const channel of ["color", "shape"])
      if (layer.encoding?.[channel]) layer.encoding[channel].legend = null;  // the boxes above are the legend
  spec.width = $("chart").clientWidth;
  spec.height = Math.max(300, Math.min(480, 0.62 * spec.width));
  spec.autosize = { type: "fit", contains: "padding" };
  spec.config = {
    background: null, font: "system-ui, sans-serif", view: { stroke: line },
    axis: { labelColor: ink, titleColor: ink, gridColor: line, domainColor: quiet, tickColor: quiet, labelFontSize: 12, titleFontSize: 13 },
  };
  return spec;
}

// The least and the most along an axis, so that Vega need not find them in tables that may be empty.
function span(all, name) {
  const found = all.flatMap((row) => name === "y" ? [row.y, row.low ?? row.y, row.high ?? row.y] : [row.x]);
  const [low, high] = [Math.min(...found), Math.max(...found)];
  if (!found.length) return [1, 10];
  return low < high ? [low, high] : [0.9 * low, 1.1 * high || 1];
}

// Round numbers for a logarithmic axis, fewer for many decades.
function ticks(low, high) {
  const found = [];
  const leading = high < 300 * low ? [1, 2, 5] : high < 1e5 * low ? [1, 3] : [1];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    found.push(...leading.map((digit) => digit * 10 ** power));
  return found;
}

// A colour of the style sheet as the browser resolves it for the theme, which Vega cannot.
function resolved(name) {
  const probe = make("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

function redraw() {
  drawing = drawing.then(draw);
  return drawing;
}

async function draw() {
  const all = rows();
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  view?.finalize();
  const tooltip = { theme: dark ? "dark" : "light" };
  view = (await vegaEmbed("#chart", form(all), { renderer: "svg", actions: false, tooltip })).view;
  drawn = [...all.chart].sort((a, b) => a.x - b.x || a.y - b.y);
  const model = (item) => drawn.find((row) => row.id === item?.datum?.id);
  view.addEventListener("mouseover", (_, item) => { if (!kept && model(item)) show(model(item)); });
  view.addEventListener("click", (_, item) => { if (model(item)) show(model(item), true); else kept = false; });
  tell(all);
  const same = drawn.find((row) => row.id === shown?.id);
  if (same && kept) show(same, true);
  else show(drawn.find((row) => row.ring) ?? drawn.at(-1));
  $("chart").dataset.drawn = Number($("chart").dataset.drawn ?? 0) + 1;
}

function tell({ across, up, choice, chart, reported, hidden }) {
  const below = chart.filter((row) => row.below).length;
  $("chart").setAttribute("aria-label", `${up.title} against ${across.title}`);
  const title = up.title[0].toUpperCase() + up.title.slice(1);
  $("summary").textContent = `${title} against ${across.title}: ${chart.length} models`
    + (reported.length ? ` and ${reported.length} of the published study (hollow)` : "")
    + (hidden ? `, ${hidden} of methods that are off not drawn` : "")
    + (below ? `; ${below} that fall ${100 * page.failed} points or more behind the best are drawn at the edge` : "")
    + ". The line is the front by validation" + (up.column === "accuracy" ? "; bars are 95 % intervals." : ".");
  $("reason").dataset.id = choice?.row.id ?? "";
  $("reason").dataset.budget = JSON.stringify(budgets());
  const among = hidden ? ", of the methods that are on" : "";
  const drawn = !choice || chart.some((row) => row.ring);
  $("reason").textContent = !choice ? "Set a budget with the sliders: the best model for it is then ringed."
    : (drawn ? "Ringed: " : "Best, but without a value on these axes: ")
      + (choice.within ? `the ${choice.words} of ${choice.within} model${choice.within > 1 ? "s" : ""} within the budget${among}`
        : `the nearest to this budget, which nothing keeps${among}`)
      + `: ${choice.row.words}.`;
}

// ---- details of one model

function show(row, keep = false) {
  shown = row ?? null;
  kept = keep;
  const list = make("dl");
  $("details").dataset.id = row?.id ?? "";
  if (!row) { $("details").replaceChildren("No model is drawn."); view.data("chosen", []).run(); return; }
  for (const [title, field] of Object.entries(page.facts).filter(([, own]) => row[own] !== undefined && own !== "words"))
    list.append(make("dt", { textContent: title }), make("dd", { textContent: row[field] }));
  list.append(make("dt", { textContent: "recipe" }), make("dd", { textContent: row.recipe }));
  const links = [make("a", { href: `../${page.folder}/${row.id}.json`, textContent: "record" })];
  if (row.archive)
    links.push(make("a", { href: `../${page.folder}/models/${row.id}.nna`, download: "", textContent: "archive" }));
  const title = `${row.ring ? "Ringed: " : ""}${row.words}`;
  $("details").replaceChildren(make("h3", { textContent: title }), list, ...links);
  for (const line of $("models").tBodies[0].rows) line.classList.toggle("shown", line.dataset.id === row.id);
  view.data("chosen", [row]).run();
}

function step(event) {
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: -1, ArrowUp: 1 };
  const at = drawn.findIndex((row) => row.id === shown?.id);
  if (event.key in moves) show(drawn[Math.max(0, Math.min(drawn.length - 1, at + moves[event.key]))], true);
  else if (event.key === "Home") show(drawn[0], true);
  else if (event.key === "End") show(drawn.at(-1), true);
  else if (event.key === "Enter") $("details").querySelector("a")?.focus();
  else if (event.key === "Escape") kept = false;
  else return;
  event.preventDefault();
}

// ---- the table

function sort(head) {
  const column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = $("models").tBodies[0];
  const key = (line) => line.cells[column].dataset.value;
  const order = (a, b) => column === 0 ? key(a).localeCompare(key(b)) : key(a) - key(b);
  body.append(...[...body.rows].sort((a, b) => (down ? -1 : 1) * order(a, b)));
}

// Rows that have all of the words, in their model, recipe or ids.
function search() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const line of $("models").tBodies[0].rows) {
    const text = line.textContent.toLowerCase();
    line.hidden = !words.every((word) => text.includes(word));
    count += !line.hidden;
  }
  $("found").textContent = words.length ? `${count} of ${page.models.length} models` : "";
}

fill();
$("chart").addEventListener("keydown", step);
$("search").addEventListener("input", search);
for (const button of $("models").tHead.querySelectorAll("button"))
  button.addEventListener("click", () => sort(button.parentNode));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
let width = $("chart").clientWidth;
addEventListener("resize", () => {
  if ($("chart").clientWidth !== width) { width = $("chart").clientWidth; redraw(); }
});
window.report = { page, recommend, front, redraw, defaults };  // for the tests
redraw();
