// The view Health: what runs, and what is wrong.

import { clock, count, duration, icon, make, score } from "/static/ui.js";

export class Health {
  constructor() {
    this.root = document.getElementById("health");
    this.before = "";
  }

  update(state) {
    // Built again only when something is new, so that a person can select text.
    const rest = { ...state, time: 0, lanes: 0, kept: 0, running: Math.floor((state.time - state.started) / 60) };
    const key = JSON.stringify(rest);
    if (key === this.before) return;
    this.before = key;
    const scrolled = this.root.querySelector(".warnings")?.scrollTop ?? 0;
    const column = (...cards) => make("div", { class: "column" }, ...cards);
    this.root.replaceChildren(summary(state), column(cameras(state), outputs(state)), column(judging(state)), warnings(state));
    const list = this.root.querySelector(".warnings");
    if (list) list.scrollTop = scrolled;
  }
}

function card(title, ...children) {
  return make("section", { class: "card" }, make("h2", {}, title), ...children);
}

function summary(state) {
  const ok = state.faults.length === 0;
  const text = ok ? "The station is healthy" : `${state.faults.length} ${state.faults.length === 1 ? "fault" : "faults"}`;
  const more = ok ? `Running for ${duration(state.time - state.started)}` : state.faults.join(" · ");
  return make("section", { class: "card wide summary", "data-ok": String(ok) },
    icon(ok ? "good" : "anomalous"),
    make("div", {}, make("strong", {}, text), make("span", { class: "muted" }, more)));
}

function row(ok, what, ...more) {
  const mark = icon(ok ? "good" : "anomalous");
  mark.classList.add(ok ? "ok" : "wrong");
  return make("li", {}, mark, make("span", { class: "what" }, what), ...more.filter(Boolean).map((text) => make("span", { class: "more" }, text)));
}

function counts(values) {
  return Object.entries(values).map(([name, value]) => `${name.replaceAll("_", " ")} ${count(value)}`).join(" · ");
}

function cameras(state) {
  const rows = state.cameras.map((camera) => {
    const word = camera.fault ? "lost" : camera.waiting ? "waiting for its first frame" : "connected";
    const since = camera.since && camera.fault ? `since ${clock(camera.since)}: ${camera.fault}` : camera.fault;
    return row(!camera.fault, `Camera ${camera.name}: ${word}`, since, camera.source, counts(camera.counts));
  });
  return card("Cameras", rows.length ? make("ul", { class: "rows" }, ...rows) : make("p", { class: "muted" }, "They are being opened."));
}

function judging(state) {
  const lane = state.lanes[0];
  const pairs = [
    ["Engine", state.engine ?? "being opened"],
    ["Recipe", state.recipe ?? "none"],
    ["Bundle", state.bundle],
    ["Folder", state.bundle_path],
    ["Method", state.method],
    ["Reject above", lane ? score(lane.threshold) : "–"],
    ["Review above", lane && lane.review_threshold !== null ? score(lane.review_threshold) : "none"],
    ["Flawline", state.version],
  ];
  const list = make("dl", { class: "pairs" });
  for (const [name, value] of pairs) list.append(make("dt", {}, name), make("dd", {}, value));
  return card("Judging", list);
}

function outputs(state) {
  const rows = state.outputs.map((output) => row(!output.fault, output.name, output.fault, counts(output.counts)));
  return card("Outputs", make("ul", { class: "rows" }, ...rows));
}

function warnings(state) {
  const items = state.warnings.map(({ at, text }) => make("li", {}, make("time", {}, clock(at)), make("span", {}, text)));
  const list = items.length ? make("ul", { class: "warnings", tabindex: "0" }, ...items) : make("p", { class: "muted" }, "None since the start.");
  const section = card("Warnings", list);
  section.classList.add("wide");
  return section;
}
