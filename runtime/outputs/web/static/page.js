// Connects to the station, and says at once when nothing comes from it any more.

import { Desk } from "/static/desk.js";
import { Health } from "/static/health.js";
import { Live } from "/static/live.js";
import { Teach } from "/static/teach.js";
import { VERDICTS, WORDS, ask, clock, duration, icon, make, setBegan, setText } from "/static/ui.js";

// The station sends something at least once a second.
const STALE_MS = 2500;
const SILENT_MS = 6000; // a connection without messages is opened again
const LONGEST_PAUSE_MS = 5000;
const TICK_MS = 250;
const VIEWS = ["live", "threshold", "teach", "health"];

const live = new Live();
const desk = new Desk();
const teach = new Teach();
const health = new Health();
const link = document.getElementById("link");
const linkWord = document.getElementById("link-word");
const gone = document.getElementById("gone");
const deadman = document.getElementById("deadman");

let source = null;
let lastMessage = null; // performance.now() of it
let lastTime = null; // the clock of the station in it
let ended = false;
let attempts = 0;
let retry = null;
let view = "live";
let fresh = false; // whether there is something to draw

function connect() {
  clearTimeout(retry);
  if (source) source.close();
  source = new EventSource("/api/events");
  const opened = performance.now();
  source.openedAt = opened;
  source.addEventListener("points", (event) => {
    const points = JSON.parse(event.data);
    live.points(points);
    desk.points(points);
  });
  source.addEventListener("state", (event) => takeState(JSON.parse(event.data)));
  source.addEventListener("end", () => { ended = true; });
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) again();
  };
}

// A browser gives up after an answer that is an error, such as while the station starts.
async function again() {
  clearTimeout(retry);
  attempts += 1;
  const pause = Math.min(LONGEST_PAUSE_MS, 500 * 2 ** Math.min(attempts, 4));
  retry = setTimeout(async () => {
    try {
      // Leads to the login if the session has ended.
      await ask("/healthz").catch(() => null);
      await ask("/api/state");
      connect();
    } catch {
      again();
    }
  }, pause);
}

function takeState(state) {
  lastMessage = performance.now();
  lastTime = state.time;
  attempts = 0;
  ended = state.phase === "ended";
  // Starts the animation again that makes the page look dead.
  deadman.dataset.beat = deadman.dataset.beat === "a" ? "b" : "a";
  setText(document.getElementById("title"), state.title);
  setText(document.getElementById("clock"), clock(state.time));
  setBegan(state.started);
  live.update(state);
  desk.update(state);
  teach.update(state);
  health.update(state);
  showFaults(state.faults);
  showMini(state.lanes);
  fresh = true;
  tick();
}

// The verdict stays in sight in the other views: the worst one of all cameras.
function showMini(lanes) {
  const order = ["waiting", ...VERDICTS];
  const verdicts = lanes.map((lane) => (lane.shown ? lane.shown.verdict : "waiting"));
  const worst = order[Math.max(0, ...verdicts.map((verdict) => order.indexOf(verdict)))];
  const mini = document.getElementById("mini");
  mini.hidden = view === "live";
  if (mini.dataset.verdict !== worst || !mini.children.length) {
    mini.dataset.verdict = worst;
    mini.replaceChildren(icon(worst), WORDS[worst]);
  }
}

function showFaults(faults) {
  const list = document.getElementById("faults");
  const key = faults.join("\n");
  if (list.dataset.key !== key) {
    list.dataset.key = key;
    list.replaceChildren(...faults.map((text) => make("li", {}, icon("anomalous"), text)));
    list.hidden = faults.length === 0;
  }
  const badge = document.getElementById("fault-count");
  badge.hidden = faults.length === 0;
  setText(badge, String(faults.length));
  badge.setAttribute("aria-label", `${faults.length} faults`);
}

function tick() {
  const silent = lastMessage === null ? null : performance.now() - lastMessage;
  const isStale = silent !== null && silent > STALE_MS;
  document.body.classList.toggle("stale", isStale || ended);
  let word = "Connecting";
  let name = "connecting";
  if (ended) [name, word] = ["gone", "Stopped"];
  else if (isStale) [name, word] = ["gone", "No connection"];
  else if (silent !== null) [name, word] = ["live", "Live"];
  link.dataset.link = name;
  setText(linkWord, word);
  gone.hidden = !(isStale || ended);
  if (!gone.hidden) {
    const since = lastTime === null ? "" : ` since ${clock(lastTime)} (${duration(silent / 1000)})`;
    const what = ended ? "The station has stopped inspecting" : "No connection to the station";
    setText(gone, `${what}${since}. What is shown is old. This page connects again by itself.`);
  }
  document.title = name === "live" ? "Flawline" : `${word} – Flawline`;
  live.tick();
  if (source && source.readyState !== EventSource.CLOSED) {
    const begun = Math.max(source.openedAt, lastMessage ?? 0);
    if (performance.now() - begun > SILENT_MS && !document.hidden) connect();
  }
}

function draw() {
  if (fresh && !document.hidden) {
    fresh = false;
    if (view === "live") live.draw();
    if (view === "threshold") desk.draw();
  }
  requestAnimationFrame(draw);
}

function route() {
  const wanted = window.location.hash.slice(1);
  view = VIEWS.includes(wanted) ? wanted : "live";
  for (const panel of document.querySelectorAll("[data-panel]")) panel.hidden = panel.dataset.panel !== view;
  for (const anchor of document.querySelectorAll("[data-view]")) {
    if (anchor.dataset.view === view) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  if (view === "threshold") desk.open();
  if (view === "teach") teach.open();
  else teach.close();
  fresh = true;
}

window.addEventListener("hashchange", route);
window.addEventListener("resize", () => { fresh = true; });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { fresh = true; });
document.addEventListener("visibilitychange", () => {
  // A page that no one sees costs the station nothing.
  if (document.hidden) {
    if (source) source.close();
  } else {
    tick();
    connect();
  }
});
setInterval(tick, TICK_MS);
route();
connect();
requestAnimationFrame(draw);
