// What the page does when it is touched: views, tables, choosers, copying, the network, the layers.
// Names of sets may be anything: they only ever become text (textContent), never markup. Nothing is fetched, and nothing is made into code.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const made = (tag, className, textContent = "") => Object.assign(document.createElement(tag), { className, textContent });
  const dataOf = (id) => JSON.parse(byId(id).textContent);
  // The page's policy forbids eval, so Vega interprets its expressions itself (ast).
  const EMBEDDING = { ast: true, actions: false, renderer: "svg", defaultStyle: false, logLevel: 1 };
  const EM = parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
  document.documentElement.classList.add("js");

  // ---- views: "#set-3" shows that set alone, everything else the overview ----
  function views() {
    const pages = all("main > .view"), overview = byId("overview"), title = document.title;
    let shown = null, left = 0;

    function show() {
      const aim = byId(location.hash.slice(1)), inside = aim?.closest("main > .view"), page = inside ?? overview, first = !shown;
      for (let fold = aim?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
      if (page === shown) return;
      if (shown === overview) left = window.scrollY;
      (first ? pages : [shown, page]).forEach((other) => { other.hidden = other !== page; });
      shown = page;
      if (first && page === overview) return; // The browser scrolls by itself, and nobody's focus is moved unasked.
      const part = inside && aim !== page ? aim : null;
      const heading = part?.querySelector("h1, h2, h3") ?? (page === overview ? document : page).querySelector("h1, h2");
      document.title = page === overview ? title : heading.textContent;
      heading.tabIndex = -1;
      heading.focus({ preventScroll: true });
      if (part) part.scrollIntoView();
      else window.scrollTo(0, page === overview ? left : 0);
    }
    if (!overview) return;
    window.addEventListener("hashchange", show);
    show();
  }

  // ---- on paper everything is there ----
  function printing() {
    let hidden = [], folded = [];
    const swap = (paper) => {
      hidden.forEach((element) => { element.hidden = !paper; });
      folded.forEach((fold) => { fold.open = paper; });
    };
    window.addEventListener("beforeprint", () => {
      [hidden, folded] = [all(".view[hidden], [data-choice][hidden]"), all("details[data-folds]:not([open])")];
      swap(true);
    });
    window.addEventListener("afterprint", () => swap(false));
    all("details[data-folds]").forEach((fold) => { fold.open = false; });
  }

  // ---- tables ----
  const words = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

  function valueOf(row, column) {
    const cell = row.cells[column], given = cell?.dataset.value;
    if (given !== undefined) return given.trim() === "" || Number.isNaN(Number(given)) ? null : Number(given);
    const shown = cell?.textContent.trim() || null;
    return shown === null || Number.isNaN(Number(shown)) ? shown : Number(shown);
  }
  function sortBy(table, head) {
    const down = head.getAttribute("aria-sort") === "ascending", body = table.tBodies[0], rows = [...body.rows];
    const compared = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : words.compare(String(a), String(b)));
    const keyed = rows.map((row) => ({ row, value: valueOf(row, head.cellIndex), last: row.classList.contains("aside") }));
    const known = keyed.filter(({ value, last }) => value !== null && !last).sort((a, b) => (down ? -1 : 1) * compared(a.value, b.value));
    const holes = keyed.filter(({ value, last }) => value === null && !last), aside = keyed.filter(({ last }) => last);
    body.append(...[...known, ...holes, ...aside].map(({ row }) => row));
    all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  }
  function filterBy(input, table) {
    const count = input.closest(":has(output.filter-count)")?.querySelector("output.filter-count");
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean), rows = [...table.tBodies[0].rows];
    rows.forEach((row) => { row.hidden = !wanted.every((word) => row.textContent.toLowerCase().includes(word)); });
    if (count) count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  }
  function tables() {
    all("table.sortable th[scope=col] > button.sort").forEach((button) => {
      button.addEventListener("click", () => sortBy(button.closest("table"), button.parentElement));
    });
    for (const input of all("input.filter")) {
      const filter = () => filterBy(input, byId(input.dataset.filters));
      input.addEventListener("input", filter);
      filter(); // A browser that reloads may have kept the words.
    }
  }

  // ---- choosers and copying ----
  function choosers() {
    for (const select of all("select.chooser")) {
      const choices = all("[data-choice]").filter((element) => element.dataset.choice === select.dataset.chooses);
      const choose = () => choices.forEach((element) => { element.hidden = element.dataset.key !== select.value; });
      select.addEventListener("change", choose);
      choose();
    }
  }
  function copying() {
    for (const button of all("button.copy")) {
      const status = made("span", "copied");
      status.setAttribute("role", "status");
      button.after(status);
      button.addEventListener("click", async () => {
        const source = byId(button.dataset.copies);
        // A page from a file may have no clipboard, or not be allowed to use it: then the reader's own keys copy what is selected.
        const done = await navigator.clipboard?.writeText(source.textContent).then(() => "copied", () => null);
        if (!done) window.getSelection().selectAllChildren(source);
        status.textContent = done ?? "selected; copy it with your keyboard";
        window.setTimeout(() => { status.textContent = ""; }, 4000);
      });
    }
  }

  // ---- drawings ----
  /** Draws once there is room, which a hidden view doesn't give, and fits the drawing whenever the room changes. */
  function whenShown(element, draw, fit) {
    let width = 0, drawn = null;
    new ResizeObserver(async () => {
      if (!element.clientWidth || element.clientWidth === width) return;
      width = element.clientWidth;
      drawn ??= draw();
      fit(await drawn);
    }).observe(element);
  }

  /** Shows a tip beside a point of what it stands in, without leaving it. */
  function place(tip, { x, y }) {
    const room = tip.parentElement;
    tip.hidden = false;
    tip.style.left = `${clamp(x + 14, 4, Math.max(4, room.clientWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(4, y + 16 + tip.offsetHeight < room.clientHeight ? y + 16 : y - 12 - tip.offsetHeight)}px`;
  }
  function pointIn(element, { clientX, clientY }) {
    const { left, top } = element.getBoundingClientRect();
    return { x: clientX - left, y: clientY - top };
  }

  // ---- the network ----
  function network() {
    const graph = byId("network-graph");
    if (!graph) return;
    const data = dataOf("network-data"), still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    const drawing = graph.querySelector(".drawing"), tip = graph.querySelector(".tip"), fingers = new Map();
    const [threshold, shown, effects, key, status] = ["threshold", "shown", "effects", "key", "status"].map((name) => byId(`network-${name}`));
    const sets = data.nodes.filter(({ page }) => page).sort((a, b) => a.place - b.place), squares = data.nodes.filter(({ page }) => !page);
    let view = null, lines = [], here = -1, grip = null;

    const measured = () => data.measures[document.querySelector("input[name=network-measure]:checked")?.value];
    const joins = (line, node) => [line.source, line.target].some((end) => (end.id ?? end) === node.id); // The layout puts nodes for their numbers.
    const frame = () => view.signal("frame"), hold = (held) => view.signal("held", held).run();
    const open = (node) => { if (node?.page) location.hash = node.page; };

    function alike() {
      const measure = measured(), least = Number(threshold.value), degree = new Map();
      if (!measure) return [];
      const edges = measure.edges.filter(([, , value]) => value >= least - 1e-9), span = measure.high - measure.low || 1;
      edges.forEach(([a, b]) => [a, b].forEach((end) => degree.set(end, (degree.get(end) ?? 0) + 1)));
      shown.textContent = `${least.toFixed(measure.step < 0.01 ? 3 : 2)}: ${edges.length} of ${measure.edges.length} lines`;
      return edges.map(([source, target, value]) => {
        const share = clamp((value - measure.low) / span, 0, 1), pull = (0.25 + 0.75 * share) / Math.min(degree.get(source), degree.get(target));
        const line = { source, target, kind: "alike", text: `similarity ${value.toFixed(3)}`, distance: 110 - 70 * share, pull };
        const opacity = (0.25 + 0.5 * share) * (effects.checked ? 0.45 : 1);
        return { ...line, stroke: "var(--soft)", width: 0.8 + 4.2 * share ** 2, opacity, dash: null };
      });
    }
    const caused = () => data.effects.map(([source, target, kind, text]) => ({
      ...{ source, target, kind, text, distance: 130, pull: kind === "better" ? 0.08 : 0.01 },
      ...{ stroke: `var(--${kind})`, width: 2, opacity: 0.9, dash: kind === "worse" ? [5, 4] : null },
    }));

    function redraw() {
      const both = effects.checked, had = view.data("nodes").length > sets.length;
      lines = [...alike(), ...(both ? caused() : [])];
      if (both && !had) view.change("nodes", view.changeset().insert(squares.map((node) => ({ ...node }))));
      if (!both && had) view.change("nodes", view.changeset().remove((node) => !node.page));
      view.change("edges", view.changeset().remove(() => true).insert(lines));
      if (key) key.hidden = !both;
      light(null);
    }
    // The first layout is made at once. What changes later moves there, in nudges, unless the reader wants no motion.
    const liven = () => view.signal("heat", still ? 1 : 0.4).signal("still", still);
    function slide() {
      const { low, high, step, start } = measured() ?? {};
      if (step) [threshold.min, threshold.max, threshold.step, threshold.value] = [low, high, step, start];
    }

    function light(node, at = null) {
      const joined = node ? lines.filter((line) => joins(line, node)) : [], id = node ? node.id : -1;
      if (view.signal("lit") !== id || !node) {
        view.signal("lit", id).signal("near", joined.flatMap((line) => [line.source.id, line.target.id])).run();
        const effect = (kind) => joined.filter((line) => line.kind === kind && node.page).map((line) => `; ${kind} on ${line.target.name}`).join("");
        status.textContent = node ? `${node.name}: ${node.text}${effect("better")}${effect("worse")}` : "";
      }
      showTip(node?.name, node?.text, at ?? (node && { x: frame().x + frame().k * node.x, y: frame().y + frame().k * node.y }));
    }
    function showTip(name, text, at) {
      tip.hidden = !name;
      [tip.firstElementChild.textContent, tip.lastElementChild.textContent] = [name ?? "", text ?? ""];
      if (name) place(tip, at);
    }

    function zoom(by, at = { x: view.width() / 2, y: view.height() / 2 }) {
      const now = frame(), whole = view.signal("whole").k, k = clamp(now.k * by, whole * 0.6, whole * 12);
      if (Math.abs(k / now.k - 1) < 1e-6) return false;
      hold({ k, x: at.x - ((at.x - now.x) * k) / now.k, y: at.y - ((at.y - now.y) * k) / now.k });
      return true;
    }
    function reset() {
      const change = view.changeset();
      view.data("nodes").filter((node) => node.fx != null).forEach((node) => change.modify(node, "fx", null).modify(node, "fy", null));
      view.signal("held", null).signal("restart", true).change("nodes", change).run();
      view.signal("restart", false).run();
    }
    function step(by) {
      const last = sets.length - 1, nothing = here < 0;
      here = nothing && by === -1 ? last : clamp(here + by, 0, last); // Left and Up begin at the end; Home, which is -Infinity, doesn't.
      light(view.data("nodes").find((node) => node.id === sets[here].id));
    }
    const zooms = { in: () => zoom(1.4), out: () => zoom(1 / 1.4), reset };
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    const keys = { "+": zooms.in, "=": zooms.in, "-": zooms.out, 0: reset, Escape: () => graph.blur(), Enter: () => open(sets[here]) };
    function pressed(event) {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in steps || event.key in keys)) return;
      event.preventDefault();
      if (event.key in steps) step(steps[event.key]);
      else keys[event.key]();
    }

    // Pointers: a node that is held is moved, the ground is panned, two fingers zoom.
    const nodeOf = (item) => [item?.datum?.datum, item?.datum].find((datum) => datum?.shape);
    function hovered(event, item) {
      if (grip?.moved) return;
      const node = nodeOf(item), line = node ? null : item?.datum;
      if (node || view.signal("lit") !== -1) light(node, pointIn(drawing, event));
      if (line?.kind) showTip(`${line.source.name} ${line.kind === "alike" ? "and" : "→"} ${line.target.name}`, line.text, pointIn(drawing, event));
      else if (!node) showTip();
    }
    function moved(event) {
      const was = fingers.get(event.pointerId), at = pointIn(drawing, event);
      if (!was || !grip) return;
      const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
      fingers.set(event.pointerId, at);
      if (other) {
        const apart = (finger) => Math.hypot(finger.x - other.x, finger.y - other.y) || 1;
        zoom(apart(at) / apart(was), { x: (at.x + other.x) / 2, y: (at.y + other.y) / 2 });
        grip.moved = grip.pinched = true;
      } else if (!grip.pinched && (grip.moved || Math.hypot(at.x - grip.at.x, at.y - grip.at.y) > 4)) drag(event, at);
    }

    function drag(event, at) {
      const { node, frame: start } = grip, [x, y] = [at.x - grip.at.x + start.x, at.y - grip.at.y + start.y];
      if (!grip.moved) {
        graph.setPointerCapture(event.pointerId); // The click that follows is the graph's and opens nothing.
        showTip();
        hold(start); // What is dragged must not change the frame under the hand.
        if (node) liven().signal("restart", !still);
      }
      grip.moved = true;
      if (!node) return hold({ k: start.k, x, y });
      const to = { x: (at.x - start.x) / start.k, y: (at.y - start.y) / start.k }, change = view.changeset();
      Object.entries({ fx: to.x, fy: to.y, ...to }).forEach(([field, value]) => change.modify(node, field, value));
      return view.change("nodes", change).run();
    }
    function released(event) {
      fingers.delete(event.pointerId);
      if (grip?.moved) view.signal("restart", false).run();
      if (!fingers.size) grip = null;
    }
    function wheeled(event) {
      const by = Math.exp((-event.deltaY * (event.deltaMode ? 16 : 1)) / 400);
      if (zoom(by, pointIn(drawing, event))) event.preventDefault(); // At its limits the page scrolls on.
    }
    function listen() {
      view.addEventListener("pointermove", hovered);
      view.addEventListener("click", (_, item) => open(nodeOf(item)));
      view.addEventListener("pointerdown", (event, item) => {
        fingers.set(event.pointerId, pointIn(drawing, event));
        grip = { node: nodeOf(item), at: pointIn(drawing, event), frame: frame(), moved: false };
      });
      graph.addEventListener("pointermove", moved);
      graph.addEventListener("pointerleave", () => { if (!grip) light(null); });
      ["pointerup", "pointercancel"].forEach((name) => window.addEventListener(name, released));
      graph.addEventListener("wheel", wheeled, { passive: false });
      graph.addEventListener("keydown", pressed);
      graph.addEventListener("blur", () => { here = -1; light(null); });
      [[threshold], [effects], all("input[name=network-measure]")].flat().forEach((input) => input.addEventListener("input", () => {
        if (input.type === "radio") slide();
        if (input !== threshold) view.signal("held", null);
        liven();
        redraw();
      }));
      all("#network [data-zoom]").forEach((button) => button.addEventListener("click", () => zooms[button.dataset.zoom]()));
    }
    async function draw() {
      const spec = { ...data.spec, width: graph.clientWidth, height: graph.clientHeight };
      const page = { font: getComputedStyle(graph).fontFamily, em: EM };
      spec.signals.filter(({ name }) => name in page).forEach((signal) => { signal.value = page[signal.name]; });
      ({ view } = await window.vegaEmbed(drawing, spec, { ...EMBEDDING, mode: "vega", tooltip: false }));
      view.change("nodes", view.changeset().insert(sets.map((node) => ({ ...node }))));
      slide();
      redraw();
      listen();
    }
    whenShown(graph, draw, () => view.width(graph.clientWidth).height(graph.clientHeight).run());
  }

  // ---- layer by layer ----
  function layers() {
    const section = byId("layers");
    if (!byId("layers-data")) return;
    const data = dataOf("layers-data"), [runs, a, b, table] = ["run", "a", "b", "table"].map((name) => byId(`layers-${name}`));
    const tip = section.appendChild(made("div", "tip")), drawings = [];
    let pair = [0, 1], run = data.runs[0];
    const nameOf = (place) => data.names[run.sets[place]];
    const percent = (value, digits) => (value === null ? "—" : `${(100 * value).toFixed(digits)} %`);
    const plain = (value) => (value === null ? "—" : value.toFixed(3));

    /** A fact by block, null where it isn't known: of the pair, or of one of the two. */
    function known(fact, side) {
      const [i, j] = [Math.min(...pair), Math.max(...pair)], upper = i * run.sets.length - (i * (i + 1)) / 2 + j - i - 1;
      const row = fact === "error" ? run.error[pair[side]] : run[fact][upper], digit = (place) => data.digits.indexOf(row[place]);
      const steps = run.blocks.map((_, block) => (row ? 64 * digit(2 * block) + digit(2 * block + 1) : Infinity));
      return steps.map((step) => (step > data.steps ? null : (step * run.most[fact]) / data.steps));
    }
    function rows(fact) {
      const sides = fact === "error" ? ["a", "b"] : ["both"], values = sides.map((_, side) => known(fact, side));
      const each = (k) => values.map((of, side) => `${nameOf(pair[side])}: ${percent(of[k], 2)}`).join("\n"), [of] = values;
      const text = { masks: (k) => `${percent(of[k], 1)} of mask bits differ`, statistics: (k) => `distance ${plain(of[k])}`, error: each }[fact];
      const row = (of, side, number, k) => ({ number, value: of[k], side, text: `block ${number}\n${text(k)}` });
      return values.flatMap((of, s) => run.numbers.map((number, k) => row(of, sides[s], number, k))).filter(({ value }) => value !== null);
    }
    function sentence() {
      const masks = rows("masks"), sorted = (masks.length ? masks : rows("statistics")).sort((one, other) => one.value - other.value);
      if (!sorted.length) return "";
      const figure = ({ number, value }) => `in block ${number} (${masks.length ? percent(value, 1) : plain(value)})`;
      const what = masks.length ? "masks differ" : "activation statistics differ";
      return `${nameOf(pair[0])} and ${nameOf(pair[1])}: ${what} most ${figure(sorted.at(-1))}, least ${figure(sorted[0])}.`;
    }
    function fill() {
      const heads = all("thead th", table), masks = known("masks"), statistics = known("statistics"), first = known("error", 0), second = known("error", 1);
      table.caption.textContent = `${nameOf(pair[0])} and ${nameOf(pair[1])}, ${run.text}`;
      [3, 4].forEach((column, side) => { heads[column].textContent = `output error, ${nameOf(pair[side])}`; });
      table.tBodies[0].replaceChildren(...run.blocks.map((block, k) => {
        const row = made("tr", ""), head = Object.assign(made("th", "", block), { scope: "row" });
        const figures = [percent(masks[k], 1), plain(statistics[k]), percent(first[k], 2), percent(second[k], 2)];
        row.append(head, ...figures.map((figure) => made("td", "", figure)));
        return row;
      }));
    }
    function redraw() {
      pair = [Number(a.value), Number(b.value)];
      byId("layers-status").textContent = sentence();
      fill();
      all("#layers-key bdi").forEach((name, side) => { name.textContent = nameOf(pair[side]); });
      [a, b].forEach((select, side) => {
        const page = data.pages[run.sets[pair[side]]];
        Object.assign(byId(`${select.id}-page`), { hidden: !page, href: `#${page}` });
      });
      drawings.forEach(({ view, fact, note }) => {
        note.hidden = rows(fact).length > 0;
        view.data("rows", rows(fact)).run();
      });
    }
    function refill() {
      const before = pair.map(nameOf);
      run = data.runs[Number(runs.value)];
      const names = run.sets.map((name) => data.names[name]), [first, second] = before.map((name) => names.indexOf(name));
      for (const select of [a, b]) select.replaceChildren(...names.map((name, value) => Object.assign(made("option", "", name), { value })));
      a.value = Math.max(first, 0);
      b.value = second >= 0 && second !== Number(a.value) ? second : Number(a.value) === 0 ? 1 : 0;
      redraw();
    }
    function hovered(_, event, __, text) {
      tip.hidden = !text;
      tip.textContent = text ?? "";
      if (text) place(tip, pointIn(section, event));
    }
    async function draw(strip) {
      const fact = strip.dataset.fact, spec = structuredClone(data.spec);
      spec.height *= EM;
      ["labelFontSize", "titleFontSize"].forEach((size) => { spec.config.axis[size] *= EM; });
      if (fact === "statistics") spec.layer.slice(0, 2).forEach((layer) => { layer.encoding.y.axis.format = "~g"; });
      const { view } = await window.vegaEmbed(strip, spec, { ...EMBEDDING, mode: "vega-lite", tooltip: hovered });
      drawings.push({ view, fact, note: strip.nextElementSibling });
      redraw();
      return view;
    }
    tip.hidden = true;
    [a.value, b.value, runs.value] = [0, 1, 0]; // A browser that reloads may have kept others.
    runs.addEventListener("change", refill);
    [[a, b, 0], [b, a, 1]].forEach(([select, other, side]) => select.addEventListener("change", () => {
      if (select.value === other.value) other.value = pair[side]; // A set beside itself says nothing: the two change places.
      redraw();
    }));
    redraw();
    all(".strip", section).forEach((strip) => whenShown(strip, () => draw(strip), (view) => view.width(strip.clientWidth).run()));
  }

  [printing, views, tables, choosers, copying, network, layers].forEach((begin) => begin());
})();
