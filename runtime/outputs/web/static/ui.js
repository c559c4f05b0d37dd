// Small helpers of all views: elements, numbers, words and requests.

export const WORDS = {
  good: "Accept", review: "Review", anomalous: "Reject", unjudged: "Not judged", waiting: "Waiting",
};
// Places of the verdicts in the points that the station sends.
export const VERDICTS = ["good", "review", "anomalous", "unjudged"];

// An answer that takes longer is given up; saving waits up to 10 s for the audit log.
const ANSWER_MS = 15000;
const whole = new Intl.NumberFormat("en");
const SVG = "http://www.w3.org/2000/svg";

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function icon(name, className = "icon") {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", className);
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function svgElement(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// Changes nothing where nothing is new, so that a screen reader and the layout are left alone.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function count(number) {
  return whole.format(number);
}

export function share(part, all) {
  if (!all) return "0\u00a0%";
  const percent = (100 * part) / all;
  return `${percent === 0 || percent >= 10 ? percent.toFixed(0) : percent.toPrecision(2)}\u00a0%`;
}

// As many digits as show on which side of a threshold a score is.
export function score(value, ...others) {
  if (value === null || value === undefined) return "–";
  for (let digits = 4; digits < 10; digits += 1) {
    const text = plain(value, digits);
    if (others.every((other) => other === null || other === value || plain(other, digits) !== text)) {
      return text;
    }
  }
  return String(value);
}

function plain(value, digits) {
  const text = Number(value).toPrecision(digits);
  return text.includes("e") ? String(Number(text)) : text;
}

export function seconds(value) {
  if (value < 1) return "now";
  if (value < 10) return `${value.toFixed(1)} s ago`;
  return `${duration(value)} ago`;
}

export function duration(value) {
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${Math.floor(value / 3600)} h ${Math.round((value % 3600) / 60)} min`;
  return `${Math.round(value / 86400)} days`;
}

export function clock(unixSeconds) {
  return new Date(1000 * unixSeconds).toLocaleTimeString("en-GB");
}

export function facts(list, pairs) {
  while (list.children.length > pairs.length) list.lastChild.remove();
  pairs.forEach(([name, value], place) => {
    let row = list.children[place];
    if (!row) {
      row = make("div", {}, make("dt"), make("dd"));
      list.append(row);
    }
    setText(row.children[0], name);
    setText(row.children[1], value);
  });
}

// Numbers of parts begin again when the station is started again, and browsers keep pictures.
let began = 0;

export function setBegan(time) {
  began = time;
}

export function partPicture(id) {
  return `/api/parts/${id}/picture?began=${began}`;
}

export function teachingPicture(id) {
  return `/api/teaching/pictures/${id}?began=${began}`;
}

export async function ask(path, body = null) {
  const options = { cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(ANSWER_MS) };
  if (body !== null) {
    options.method = "POST";
    options.headers = { "content-type": "application/json" };
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  if (answer.status === 401) window.location.assign("/login");
  if (!answer.ok) throw new Error(await reason(answer));
  return answer;
}

async function reason(answer) {
  try {
    const { detail } = await answer.json();
    if (typeof detail === "string") return detail;
    if (Array.isArray(detail)) return detail.map((item) => item.msg).join("; ");
  } catch {
    // Not JSON: the status says what there is to say.
  }
  return `the station answers with status ${answer.status}`;
}

// Pictures of parts are loaded one after the other: a browser has few connections to a station, and
// the newest frame must not wait for them.
let begin;
let loading = new Promise((resolve) => { begin = resolve; });
setTimeout(() => begin(), 3000);

// Called when the first one of a newest frame is there.
export function beginLaterPictures() {
  begin();
}

export function laterPicture(src, attributes = {}) {
  const image = make("img", { alt: "", ...attributes });
  loading = loading.then(async () => {
    if (!image.isConnected) return;
    image.src = src;
    const shown = image.decode().catch(() => image.dispatchEvent(new Event("gone")));
    await Promise.race([shown, new Promise((resolve) => { setTimeout(resolve, ANSWER_MS); })]);
  });
  return image;
}

export function colours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["text", "muted", "line", "line-strong", "good", "review", "review-text", "bad", "bad-text", "none", "surface", "accent"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

// Prepares a canvas for its size on the screen; returns its context, width and height.
export function sharp(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const ratio = window.devicePixelRatio || 1;
  const [columns, rows] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== columns || canvas.height !== rows) {
    canvas.width = columns;
    canvas.height = rows;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = `600 12px ${getComputedStyle(document.body).fontFamily}`;
  return { context, width, height };
}
