// What all parts of the report's script share, and the parts of the page that need no data. The files page.js, table.js
// and map.js stand in the page as one module, in this order. Texts from the data become text nodes, never markup.

const LOCALE = "en-US";

function byId(id) {
  return document.getElementById(id);
}

// An element with properties (aria- and data- as attributes) and children: elements or texts.
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

function readData(id) {
  return JSON.parse(byId(id).textContent);
}

// The bytes that packed.py put into the page.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function unpackJson(text) {
  return JSON.parse(new TextDecoder().decode(await unpack(text)));
}

// float32, whose bytes packed.py has put apart.
async function unpackFloats(text) {
  const apart = await unpack(text);
  const n = apart.length / 4;
  const bytes = new Uint8Array(apart.length);
  for (let i = 0; i < n; i++) for (let k = 0; k < 4; k++) bytes[4 * i + k] = apart[k * n + i];
  return new Float32Array(bytes.buffer);
}

// Numbers as report_tables.py prints them.
function digits(value) {
  if (value === null || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 999.5) return value.toLocaleString(LOCALE, { maximumFractionDigits: 0 });
  if (size > 0 && size < 9.995e-5) {
    const [head, power] = value.toExponential(2).split("e");
    const sign = power[0];
    return `${Number(head)}e${sign}${power.slice(1).padStart(2, "0")}`;
  }
  return String(Number(value.toPrecision(3)));
}

const SHOW = {
  text: (value) => (value === null || value === "" ? "–" : value),
  whole: (value) => (value === null ? "–" : value.toLocaleString(LOCALE)),
  digits,
  yes_no: (value) => (value ? "yes" : "no"),
  percent: (value) => (value === null ? "–" : `${digits(100 * value)} %`),
};

function count(n, one) {
  return `${n.toLocaleString(LOCALE)} ${one}${n === 1 ? "" : "s"}`;
}

// Tell a screen reader and the eye at once; an empty text first, so that the same is said again.
function say(place, text) {
  place.textContent = "";
  place.textContent = text;
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

const themeListeners = [];

function startTheme() {
  const button = byId("theme");
  const tell = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Show the page in ${isDark() ? "light" : "dark"} colours`);
    for (const listener of themeListeners) listener();
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    tell();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);
  tell();
}

function startCopying() {
  for (const button of document.querySelectorAll("button[data-copies]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const source = byId(button.dataset.copies);
      const selection = getSelection();
      selection.selectAllChildren(source);
      // A page from disk may have no clipboard; then the text is selected at least.
      const copied = await navigator.clipboard?.writeText(source.innerText).then(() => true, () => false);
      say(button.nextElementSibling, copied ? "copied" : "selected: press Ctrl+C");
    });
  }
}

// What is folded on the screen is open on paper.
function startPrinting() {
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const part of folded) part.open = true;
  });
  addEventListener("afterprint", () => folded.forEach((part) => (part.open = false)));
}

// The link of the section that is being read.
function startContents() {
  const links = new Map([...document.querySelectorAll("nav.contents a")].map((a) => [a.hash.slice(1), a]));
  const watcher = new IntersectionObserver(
    (seen) => {
      for (const { isIntersecting, target } of seen) {
        if (!isIntersecting) continue;
        for (const link of links.values()) link.removeAttribute("aria-current");
        links.get(target.id)?.setAttribute("aria-current", "true");
      }
    },
    { rootMargin: "-10% 0px -80% 0px" },
  );
  for (const section of document.querySelectorAll("main section[id]")) watcher.observe(section);
}

startTheme();
startCopying();
startPrinting();
startContents();
