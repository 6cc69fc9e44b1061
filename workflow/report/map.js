// The map of the cells: colours, legend, search, facts, selection. BokehJS draws it.

const N_SHADES = 255; // of a number or a gene; shade 0 is for what is missing, or a gene without counts
const REACH = 6; // pixels from a point within which it is pointed at
const FEW = 20_000; // points up to which a drag redraws all of them
const CLIP = 0.005; // a share of the smallest, and of the largest, numbers has the colour at the end
const TRANSFORMS = {
  linear: (value) => value,
  log10: (value) => Math.log10(value),
  "minus log10": (value) => -Math.log10(Math.max(value, 1e-300)),
};

// A number between 0 and 1 that is the same for a row each time: the order in which categories are drawn.
function shuffled(row) {
  return ((row * 2654435761) % 4294967296) / 4294967296;
}

class CellMap {
  constructor(root) {
    this.root = root;
    this.part = (name) => root.querySelector(`[data-part="${name}"]`);
    this.off = new Set(); // labels switched off in the legend
  }

  // Once, when the map comes near the screen or is asked for a cell.
  start() {
    this.started ??= this.unpackAndDraw();
    return this.started;
  }

  async unpackAndDraw() {
    const data = readData("data-map");
    this.data = data;
    this.one = data.unit.slice(0, -1);
    this.genes = new Map(data.genes.map((gene) => [gene.name.toLowerCase(), gene]));
    const places = await Promise.all([unpack(data.x), unpack(data.y)]);
    [this.x, this.y] = places.map((bytes) => Float64Array.from(new Uint16Array(bytes.buffer)));
    this.names = await unpackJson(data.names);
    this.rowOf = new Map(this.names.map((name, row) => [name, row]));
    for (const category of data.categories) category.codes = await unpack(category.data);
    for (const number of data.numbers) number.values = await unpackFloats(number.data);
    this.flagged = this.rowsOf("finding", "flagged");
    this.build();
    await this.draw();
    await this.colourBy("finding");
    themeListeners.push(() => this.paint());
    this.root.dataset.ready = "yes";
  }

  rowsOf(name, label) {
    const { labels, codes } = this.data.categories.find((category) => category.name === name);
    const wanted = labels.indexOf(label);
    return Array.from(codes.keys()).filter((row) => codes[row] === wanted);
  }

  // ---- controls

  build() {
    const choose = this.part("colour");
    const group = (label, entries) =>
      element("optgroup", { label }, ...entries.map(([value, text]) => element("option", { value }, text)));
    const facts = [...this.data.categories, ...this.data.numbers].map(({ name, heading }) => [name, heading]);
    choose.append(group("Facts", facts));
    if (this.data.genes.length) {
      choose.append(group("Genes", this.data.genes.map(({ name }) => [`gene ${name}`, name])));
      this.part("genes").append(...this.data.genes.map(({ name }) => element("option", { value: name })));
    }
    choose.addEventListener("change", () => this.colourBy(choose.value));
    this.part("find").addEventListener("change", (event) => this.find(event.target.value.trim()));
    this.part("ring").addEventListener("change", (event) => (this.rings.visible = event.target.checked));
    for (const radio of this.root.querySelectorAll("input[type=radio]")) {
      radio.addEventListener("change", () => (this.tools[radio.value].active = true));
    }
    this.part("in").addEventListener("click", () => this.zoom(0.6));
    this.part("out").addEventListener("click", () => this.zoom(1 / 0.6));
    this.part("reset").addEventListener("click", () => this.reset());
  }

  // ---- the plot

  async draw() {
    const { figure, show } = Bokeh.Plotting;
    const { ColumnDataSource, Range1d, LinearColorMapper, PanTool, WheelZoomTool } = Bokeh;
    this.tools = { pan: new PanTool(), box: new Bokeh.BoxSelectTool(), lasso: new Bokeh.LassoSelectTool() };
    this.range = { x: new Range1d({ start: 0, end: 1 }), y: new Range1d({ start: 0, end: 1 }) };
    this.mapper = new LinearColorMapper({ palette: ["#888888"], low: -0.5, high: 0.5 });
    this.cells = new ColumnDataSource({ data: { x: [], y: [], shade: [], row: [] } });
    this.ringed = new ColumnDataSource({ data: { x: [], y: [] } });
    this.found = new ColumnDataSource({ data: { x: [], y: [] } });
    const wheel = new WheelZoomTool({ modifiers: { ctrl: true } });
    const plot = figure({
      x_range: this.range.x,
      y_range: this.range.y,
      sizing_mode: "stretch_both",
      toolbar_location: null,
      tools: [...Object.values(this.tools), wheel],
      active_drag: this.tools.pan,
      active_scroll: wheel,
      background_fill_color: null,
      border_fill_color: null,
      outline_line_color: null,
      lod_threshold: FEW,
      min_border: 0,
    });
    for (const axis of [...plot.axes, ...plot.grids]) axis.visible = false;
    const size = Math.max(2.5, 11 - 2.2 * Math.log10(this.data.n));
    const colour = { field: "shade", transform: this.mapper };
    const points = plot.scatter({ field: "x" }, { field: "y" }, {
      source: this.cells, size, fill_color: colour, line_color: null, fill_alpha: 0.85,
      nonselection_fill_alpha: 0.12, nonselection_fill_color: colour, selection_fill_alpha: 1,
    });
    this.rings = plot.scatter({ field: "x" }, { field: "y" }, {
      source: this.ringed, size: size + 3, fill_color: null, line_color: "#D55E00", line_alpha: 0.8, line_width: 0.8,
    });
    plot.scatter({ field: "x" }, { field: "y" }, { source: this.found, size: size + 14, fill_color: null, line_color: "#D55E00", line_width: 3 });
    for (const tool of [this.tools.box, this.tools.lasso]) tool.renderers = [points];
    this.cells.selected.properties.indices.change.connect(() => this.selected());
    const frame = this.part("plot");
    frame.addEventListener("pointermove", (event) => this.point(event));
    frame.addEventListener("pointerleave", () => (this.tooltip.hidden = true));
    frame.addEventListener("click", (event) => {
      const row = this.nearest(event);
      if (row !== undefined) this.tell(row);
    });
    for (const moved of ["pointerdown", "wheel"]) frame.addEventListener(moved, () => (this.isWhole = false));
    this.plot = plot;
    plot.properties.inner_width.change.connect(() => this.keepShape());
    plot.properties.inner_height.change.connect(() => this.keepShape());
    this.view = await show(plot, frame);
    this.tooltip = element("div", { className: "tooltip", hidden: true });
    frame.append(this.tooltip);
    this.reset();
  }

  // ---- what one points at

  // The row of the nearest point within a few pixels. BokehJS's own hover would draw all points again at each move.
  nearest({ clientX, clientY }) {
    const { left, top } = this.part("plot").getBoundingClientRect();
    const { x_scale: across, y_scale: up } = this.view.frame;
    const [x, y] = [across.invert(clientX - left), up.invert(clientY - top)];
    const reach = REACH * Math.abs(across.invert(1) - across.invert(0));
    let [least, found] = [reach * reach, undefined];
    for (const row of this.cells.data.row) {
      const distance = (this.x[row] - x) ** 2 + (this.y[row] - y) ** 2;
      // Of points at one place the last, which lies on top.
      if (distance <= least) [least, found] = [distance, row];
    }
    return found;
  }

  point(event) {
    const row = event.buttons ? undefined : this.nearest(event);
    this.tooltip.hidden = row === undefined;
    if (row === undefined) return;
    const { left, top, width, height } = this.part("plot").getBoundingClientRect();
    const [x, y] = [event.clientX - left, event.clientY - top];
    this.tooltip.replaceChildren(this.factsOf(row));
    // On the side that has more room.
    this.tooltip.style.inset = [
      y < height / 2 ? `${y + 12}px` : "auto",
      x < width / 2 ? "auto" : `${width - x + 12}px`,
      y < height / 2 ? "auto" : `${height - y + 12}px`,
      x < width / 2 ? `${x + 12}px` : "auto",
    ].join(" ");
  }

  // ---- where one looks

  look(x, y, width) {
    this.isWhole = false;
    const height = (width * this.plot.inner_height) / Math.max(1, this.plot.inner_width);
    this.range.x.setv({ start: x - width / 2, end: x + width / 2 });
    this.range.y.setv({ start: y - height / 2, end: y + height / 2 });
  }

  centre() {
    const { x, y } = this.range;
    return [(x.start + x.end) / 2, (y.start + y.end) / 2, x.end - x.start];
  }

  zoom(by) {
    const [x, y, width] = this.centre();
    this.look(x, y, width * by);
  }

  // A distance means the same in both directions.
  keepShape() {
    if (this.isWhole) this.reset();
    else this.look(...this.centre());
  }

  reset() {
    const largest = (values) => values.reduce((most, value) => Math.max(most, value), 1);
    const [right, top] = [largest(this.x), largest(this.y)];
    const shape = this.plot.inner_width / Math.max(1, this.plot.inner_height);
    this.look(right / 2, top / 2, 1.06 * Math.max(right, top * shape));
    this.isWhole = true;
  }

  // ---- colours

  async colourBy(choice) {
    this.part("colour").value = choice;
    this.off.clear();
    this.choice = choice;
    const { categories, numbers } = this.data;
    const category = categories.find(({ name }) => name === choice);
    const number = numbers.find(({ name }) => name === choice);
    if (category) this.colours = { category };
    else if (number) this.colours = { heading: number.heading, ...this.shadesOf(number) };
    else await this.useGene(choice.slice(5));
    this.paint();
  }

  async useGene(name) {
    const gene = this.genes.get(name.toLowerCase());
    gene.steps ??= await unpack(gene.data);
    const shades = gene.steps.map((step) => Math.round((step * N_SHADES) / this.data.steps));
    this.colours = { heading: `${gene.name}, log(1 + count at median depth)`, shades, low: "0", high: digits(gene.top) };
  }

  shadesOf({ values, scale }) {
    const change = TRANSFORMS[scale];
    const sorted = values.filter((value) => !Number.isNaN(value)).sort();
    const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
    const ends = [at(CLIP), at(1 - CLIP)];
    if (scale === "minus log10") ends.reverse();
    const [low, high] = ends.map(change);
    const shades = Uint8Array.from(values, (value) => {
      if (Number.isNaN(value)) return 0;
      const share = high > low ? (change(value) - low) / (high - low) : 0;
      return 1 + Math.round((N_SHADES - 1) * Math.min(1, Math.max(0, share)));
    });
    return { shades, low: digits(ends[0]), high: digits(ends[1]) };
  }

  restColour() {
    return getComputedStyle(this.part("rest")).color;
  }

  paint() {
    const { category, shades } = this.colours;
    const rest = this.restColour();
    const palette = category ? category.colours.map((colour) => colour ?? rest) : [rest, ...this.data.palette];
    const shade = category ? category.codes : shades;
    // Categories in a random order, so that none hides another; numbers with the largest on top.
    const isRest = category ? (row) => category.colours[shade[row]] === null : (row) => shade[row] === 0;
    const height = category ? (row) => (isRest(row) ? -1 : shuffled(row)) : (row) => shade[row];
    const rows = Int32Array.from(this.x.keys()).filter((row) => !category || !this.off.has(shade[row]));
    const heights = Float64Array.from(this.x, (_, row) => height(row));
    rows.sort((a, b) => heights[a] - heights[b]);
    this.mapper.setv({ palette, low: -0.5, high: palette.length - 0.5 });
    const take = (values) => Float64Array.from(rows, (row) => values[row]);
    this.cells.selected.indices = [];
    this.cells.data = { x: take(this.x), y: take(this.y), shade: take(shade), row: rows };
    const shown = this.flagged.filter((row) => !category || !this.off.has(shade[row]));
    this.ringed.data = { x: shown.map((row) => this.x[row]), y: shown.map((row) => this.y[row]) };
    this.drawLegend(palette);
  }

  drawLegend(palette) {
    const { category, heading, low, high } = this.colours;
    const legend = this.part("legend");
    legend.setAttribute("aria-label", `Legend: ${category ? category.heading : heading}`);
    if (!category) {
      const bar = element("div", { className: "shades" });
      bar.style.background = `linear-gradient(to right, ${palette.slice(1).join(", ")})`;
      const ends = element("div", { className: "ends" }, element("span", {}, low), element("span", {}, high));
      legend.replaceChildren(element("p", {}, heading), bar, ends);
      return;
    }
    const sizes = new Array(category.labels.length).fill(0);
    for (const code of category.codes) sizes[code] += 1;
    const switches = category.labels.map((label, code) => {
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = palette[code];
      const n = element("span", { className: "n" }, `n = ${sizes[code].toLocaleString(LOCALE)}`);
      const button = element("button", { type: "button", "aria-pressed": String(!this.off.has(code)) }, swatch, element("span", {}, label), n);
      button.addEventListener("click", () => {
        if (!this.off.delete(code)) this.off.add(code);
        this.paint();
        legend.querySelectorAll("button")[code].focus();
      });
      return button;
    });
    legend.replaceChildren(element("p", {}, category.heading), ...switches);
  }

  // ---- cells

  factsOf(row) {
    const facts = [];
    for (const { heading, labels, codes } of this.data.categories) facts.push([heading, labels[codes[row]]]);
    for (const { heading, values } of this.data.numbers) facts.push([heading, digits(values[row])]);
    if (this.choice.startsWith("gene ")) {
      const gene = this.genes.get(this.choice.slice(5).toLowerCase());
      facts.push([gene.name, digits((gene.top * gene.steps[row]) / this.data.steps)]);
    }
    const list = element("dl", { className: "facts" }, element("dt", {}, this.one), element("dd", {}, element("b", {}, this.names[row])));
    for (const [name, value] of facts) {
      if (value !== "none" && value !== "–") list.append(element("dt", {}, name), element("dd", {}, value));
    }
    return list;
  }

  tell(row) {
    this.part("facts").replaceChildren(this.factsOf(row));
  }

  mark(row) {
    this.found.data = { x: [this.x[row]], y: [this.y[row]] };
    const [, , width] = this.centre();
    this.look(this.x[row], this.y[row], Math.min(width, 30000));
    this.tell(row);
  }

  async show(name) {
    await this.start();
    const row = this.rowOf.get(name);
    if (row === undefined) {
      say(this.part("said"), `${name} is not among the ${this.data.unit} drawn here.`);
      return;
    }
    this.mark(row);
    this.root.scrollIntoView({ block: "start" });
    say(this.part("said"), `${name} is ringed, in the middle of the map.`);
  }

  async find(text) {
    const said = this.part("said");
    if (!text) {
      this.found.data = { x: [], y: [] };
      say(said, "");
      return;
    }
    const gene = this.genes.get(text.toLowerCase());
    if (gene && !this.rowOf.has(text)) {
      await this.colourBy(`gene ${gene.name}`);
      say(said, `The map is coloured by ${gene.name}.`);
      return;
    }
    const wanted = text.toLowerCase();
    const hits = this.rowOf.has(text) ? [text] : this.names.filter((name) => name.toLowerCase().includes(wanted));
    if (!hits.length) {
      say(said, `No ${this.one} and no gene of this page is called ${text}. All genes are in annotated.h5ad.`);
      return;
    }
    this.mark(this.rowOf.get(hits[0]));
    const more = hits.length > 1 ? ` ${hits.length.toLocaleString(LOCALE)} ${this.data.unit} have “${text}” in their name.` : "";
    say(said, `${hits[0]} is ringed, in the middle of the map.${more}`);
  }

  // What is selected on the map is what the table of anomalies shows.
  selected() {
    const { indices } = this.cells.selected;
    const names = indices.length ? new Set(indices.map((i) => this.names[this.cells.data.row[i]])) : null;
    longTables.get("anomalies")?.showOnly(names);
    const text = names ? `${count(names.size, this.one)} selected; the table of anomalies shows those of them that are flagged.` : "";
    say(this.part("said"), text);
  }
}

function startMap(root) {
  root.hidden = false;
  cellMap = new CellMap(root);
  for (const table of longTables.values()) table.draw();
  const watcher = new IntersectionObserver(
    ([{ isIntersecting }]) => {
      if (!isIntersecting) return;
      watcher.disconnect();
      cellMap.start();
    },
    { rootMargin: "100%" },
  );
  watcher.observe(root);
}

if (byId("map") && "DecompressionStream" in window) startMap(byId("map"));
