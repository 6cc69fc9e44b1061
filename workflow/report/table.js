// Long tables: sort, filter, pages, download. Without this script the first page of rows stands in the page.

const ROWS_A_PAGE = 50;
const MAX_CHOICES = 60; // different values of a column up to which it has a menu
// What a spreadsheet would take for a formula, and what it is not; as job.py has them.
const FORMULA = /^'*[=+\-@\t\n\uff1d\uff0b\uff0d\uff20]/;
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

class LongTable {
  constructor(root, data, columns) {
    this.root = root;
    this.name = root.dataset.table;
    this.about = data.columns; // name, heading, kind
    this.columns = columns; // a list of values each
    this.n = data.n;
    this.order = Array.from({ length: this.n }, (_, row) => row);
    this.page = 0;
    this.search = "";
    this.chosen = new Map(); // column: value
    this.only = null; // names of cells that were selected on the map
    this.sorted = null; // [column, ascending]
    this.build();
    this.filter();
  }

  shown(row, column) {
    return SHOW[this.about[column].kind](this.columns[column][row]);
  }

  // ---- controls

  build() {
    const find = element("input", { type: "search", placeholder: "any column", autocomplete: "off" });
    find.addEventListener("input", () => this.changed(() => (this.search = find.value.trim().toLowerCase())));
    this.said = element("p", { className: "said", role: "status" });
    const download = element("button", { type: "button" }, "Download these rows (TSV)");
    download.addEventListener("click", () => this.download());
    this.chip = element("button", { type: "button", hidden: true });
    this.chip.addEventListener("click", () => this.showOnly(null));
    const controls = this.root.querySelector(".controls");
    controls.append(element("label", {}, "Search ", find), ...this.menus(), this.chip, download);
    controls.hidden = false;
    this.pager = this.buildPager();
    this.root.querySelector(".scroll").after(this.said, this.pager);
    this.headings = [...this.root.querySelectorAll("thead th")];
    this.headings.forEach((heading, column) => {
      const button = element("button", { type: "button", className: "sort" }, heading.textContent);
      button.addEventListener("click", () => this.sort(column));
      heading.replaceChildren(button);
    });
    this.body = this.root.querySelector("tbody");
  }

  menus() {
    return this.about.flatMap(({ heading, menu, kind }, column) => {
      if (!menu) return [];
      const show = SHOW[kind];
      const values = [...new Set(this.columns[column])].sort((a, b) => show(a).localeCompare(show(b)));
      if (values.length < 2 || values.length > MAX_CHOICES) return [];
      const select = element("select", { "aria-label": heading }, element("option", { value: "" }, "all"));
      values.forEach((value, i) => select.append(element("option", { value: String(i) }, show(value))));
      select.addEventListener("change", () =>
        this.changed(() => {
          if (select.value === "") this.chosen.delete(column);
          else this.chosen.set(column, values[Number(select.value)]);
        }),
      );
      return [element("label", {}, `${heading} `, select)];
    });
  }

  buildPager() {
    const turn = (text, by) => {
      const button = element("button", { type: "button" }, text);
      button.addEventListener("click", () => {
        this.page += by;
        this.draw();
      });
      return button;
    };
    this.back = turn("Previous", -1);
    this.on = turn("Next", 1);
    this.where = element("span", {});
    return element("div", { className: "pager" }, this.back, this.where, this.on);
  }

  // ---- rows

  texts() {
    this.lower ??= this.order.map((_, row) =>
      this.about.map((_, column) => this.shown(row, column)).join("\u0001").toLowerCase(),
    );
    return this.lower;
  }

  changed(change) {
    change();
    this.filter();
  }

  filter() {
    const texts = this.search ? this.texts() : null;
    const fits = (row) =>
      (!texts || texts[row].includes(this.search)) &&
      (!this.only || this.only.has(this.columns[0][row])) &&
      [...this.chosen].every(([column, value]) => this.columns[column][row] === value);
    this.rows = this.order.filter(fits);
    this.page = 0;
    this.draw();
  }

  sort(column) {
    const ascending = this.sorted?.[0] === column ? !this.sorted[1] : true;
    this.sorted = [column, ascending];
    const values = this.columns[column];
    const sign = ascending ? 1 : -1;
    const compare = this.about[column].kind === "text" ? (a, b) => a.localeCompare(b) : (a, b) => a - b;
    const isMissing = (value) => value === null || value === "";
    // Missing values are last either way; rows of one value stay in the order they came.
    this.order.sort((a, b) => {
      const [left, right] = [values[a], values[b]];
      if (isMissing(left) || isMissing(right)) return isMissing(left) - isMissing(right) || a - b;
      return sign * compare(left, right) || a - b;
    });
    this.headings.forEach((heading, i) => {
      if (i === column) heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      else heading.removeAttribute("aria-sort");
    });
    this.filter();
  }

  draw() {
    const pages = Math.max(1, Math.ceil(this.rows.length / ROWS_A_PAGE));
    const first = this.page * ROWS_A_PAGE;
    this.body.replaceChildren(...this.rows.slice(first, first + ROWS_A_PAGE).map((row) => this.row(row)));
    this.where.textContent = `Page ${this.page + 1} of ${pages}`;
    this.back.disabled = this.page === 0;
    this.on.disabled = this.page === pages - 1;
    this.pager.hidden = pages === 1;
    const all = this.rows.length === this.n;
    say(this.said, all ? count(this.n, "row") : `${this.rows.length.toLocaleString(LOCALE)} of ${count(this.n, "row")}`);
  }

  row(row) {
    const made = element("tr");
    this.about.forEach(({ style, name }, column) => {
      const text = this.shown(row, column);
      const cell = element("td", { className: style });
      if (name === "cell_id" && cellMap) {
        const button = element("button", { type: "button", className: "link", title: "Show it on the map" }, text);
        button.addEventListener("click", () => cellMap.show(text));
        cell.append(button);
      } else cell.append(text);
      made.append(cell);
    });
    return made;
  }

  // ---- from and to elsewhere

  showOnly(names) {
    this.only = names;
    this.chip.hidden = !names;
    this.chip.textContent = names ? `Selected on the map: ${names.size.toLocaleString(LOCALE)} ×` : "";
    this.chip.setAttribute("aria-label", "Drop the selection made on the map");
    this.filter();
  }

  asTsv() {
    const cell = (value, kind) => {
      if (value === null) return "NA";
      if (kind !== "text") return String(value);
      const text = FORMULA.test(value) && !NUMBER.test(value) ? `'${value}` : value;
      // A spreadsheet takes quotes away, and what then begins the text could be run.
      return /["\t\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const lines = this.rows.map((row) => this.about.map(({ kind }, i) => cell(this.columns[i][row], kind)).join("\t"));
    return [this.about.map(({ name }) => name).join("\t"), ...lines, ""].join("\n");
  }

  download() {
    const url = URL.createObjectURL(new Blob([this.asTsv()], { type: "text/tab-separated-values" }));
    element("a", { href: url, download: `${this.name}.tsv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }
}

let cellMap = null; // set by map.js
const longTables = new Map();

async function startTable(root) {
  const data = readData(`data-${root.dataset.table}`);
  longTables.set(root.dataset.table, new LongTable(root, data, await unpackJson(data.data)));
}

// Without the means to unpack, the first page of rows stays as it is.
if ("DecompressionStream" in window) {
  for (const root of document.querySelectorAll("[data-table]")) await startTable(root);
}
