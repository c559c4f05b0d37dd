// The live view: a card for each camera, and the parts that were not good.

import { Trace } from "/static/trace.js";
import { WORDS, ask, beginLaterPictures, clock, count, duration, facts, icon, laterPicture, make, partPicture, score, seconds, setText, share, svgElement } from "/static/ui.js";
import { openPart } from "/static/zoom.js";

const SILENT_S = 3; // without a frame, a camera that gives frames all the time is marked
const LEAST_PAUSE_MS = 150; // between two pictures
const RETRY_MS = 1000;

class Lane {
  constructor(name) {
    this.name = name;
    this.state = null;
    this.received = 0;
    const template = document.getElementById("lane-template");
    this.root = template.content.cloneNode(true).firstElementChild;
    const find = (selector) => this.root.querySelector(selector);
    this.verdict = find(".verdict");
    this.use = find(".verdict-icon use");
    this.word = find(".verdict-word");
    this.note = find(".verdict-note");
    this.numbers = [find(".n-score"), find(".n-threshold"), find(".n-review")];
    this.picture = find(".picture");
    this.frame = find(".picture-frame");
    this.image = find(".picture-frame img");
    this.boxes = find(".boxes");
    this.empty = find(".picture-empty");
    this.staleNote = find(".picture-stale");
    this.facts = find(".numbers .facts");
    this.trace = new Trace(find("canvas"));
    this.withMap = true;
    this.loading = false;
    this.shownNumber = null;
    this.pictureAt = performance.now();
    find(".lane-name").textContent = name === "parts" ? "All cameras" : `Camera ${name}`;
    this.source = find(".lane-source");
    this.toggle(find(".t-map"), (on) => {
      this.withMap = on;
      this.shownNumber = null;
      this.load();
    });
    this.toggle(find(".t-boxes"), (on) => this.boxes.toggleAttribute("hidden", !on));
  }

  toggle(button, change) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      change(on);
    });
  }

  update(state, source) {
    this.state = state;
    this.received = performance.now();
    setText(this.source, source);
    const { shown } = state;
    const verdict = shown ? shown.verdict : "waiting";
    this.verdict.dataset.verdict = verdict;
    this.use.setAttribute("href", `#i-${verdict}`);
    setText(this.word, WORDS[verdict]);
    const { threshold, review_threshold: review } = shown ?? state;
    setText(this.numbers[0], score(shown ? shown.score : null, threshold, review));
    setText(this.numbers[1], score(threshold));
    setText(this.numbers[2], review === null ? "none" : score(review));
    this.trace.setLevels(state.threshold, state.review_threshold);
    facts(this.facts, this.rows(state));
    this.drawBoxes(shown);
    this.load();
    this.tick();
  }

  rows(state) {
    const all = state.frames;
    return [
      ["Frames per second", state.fps.toFixed(1)],
      ["Age at the verdict", state.age_ms === null ? "–" : `${state.age_ms.toFixed(0)} ms`],
      ["Time to judge", state.latency_ms === null ? "–" : `${state.latency_ms.toFixed(1)} ms`],
      ["Rejected", `${count(state.rejected)} (${share(state.rejected, all)})`],
      ["For review", `${count(state.reviewed)} (${share(state.reviewed, all)})`],
      ["Not judged", count(state.unjudged)],
      ["Judged", count(state.judged)],
      ["Dropped", count(state.dropped)],
    ];
  }

  // Ages grow between two messages, and also when none come.
  tick() {
    const { state } = this;
    if (!state || !state.shown) return;
    const waited = (performance.now() - this.received) / 1000;
    const silent = state.silent_s + waited;
    const { shown } = state;
    const parts = [];
    if (shown.part !== null) parts.push(`Part ${shown.part}`);
    if (shown.camera !== null && this.name === "parts") parts.push(`Worst view: ${shown.camera}`);
    parts.push(`Frame ${count(shown.number)}`, seconds(state.shown_age_s + waited));
    if (state.windowed) parts.push("several frames decide");
    setText(this.note, shown.reason ?? parts.join(" · "));
    const old = state.continuous && silent > SILENT_S;
    this.root.classList.toggle("old", old);
    // A picture that is not loaded must not pass for the one of the verdict.
    const late = shown.width > 0 && shown.number !== this.shownNumber && performance.now() - this.pictureAt > 1000 * SILENT_S;
    this.staleNote.hidden = !(old || late);
    if (old) setText(this.staleNote, `No new frame for ${duration(silent)}`);
    else if (late) setText(this.staleNote, "The picture is older than the verdict");
  }

  drawBoxes(shown) {
    this.boxes.replaceChildren();
    if (!shown || !shown.width) return;
    this.boxes.setAttribute("viewBox", `0 0 ${shown.width} ${shown.height}`);
    const ratio = `${shown.width} / ${shown.height}`;
    if (this.frame.style.aspectRatio !== ratio) this.frame.style.aspectRatio = ratio;
    // Beside the outline of the map, not on it.
    const gap = 0.012 * Math.max(shown.width, shown.height);
    for (const { box: [x, y, width, height] } of shown.regions) {
      const place = { x: x - gap, y: y - gap, width: width + 2 * gap, height: height + 2 * gap, rx: gap };
      this.boxes.append(svgElement("rect", { ...place, class: "edge" }), svgElement("rect", place));
    }
  }

  // One picture at a time: a slow connection gets fewer, and none waits in the station.
  async load() {
    const shown = this.state?.shown;
    if (this.loading || !shown || shown.number === this.shownNumber) return;
    // No one looks at it, or another view is open.
    if (document.hidden || this.root.offsetParent === null) return;
    if (!shown.width) {
      this.clear("This frame has no image");
      return;
    }
    this.loading = true;
    let pause = LEAST_PAUSE_MS;
    try {
      const answer = await ask(`/api/lanes/${encodeURIComponent(this.name)}/picture?map=${this.withMap}`);
      const number = Number(answer.headers.get("x-frame"));
      const address = URL.createObjectURL(await answer.blob());
      await this.show(address);
      this.shownNumber = number;
      this.pictureAt = performance.now();
      beginLaterPictures();
      setText(this.empty, "");
      this.image.alt = `Frame ${number} of ${this.name}`;
    } catch (error) {
      pause = RETRY_MS;
    }
    setTimeout(() => {
      this.loading = false;
      this.load();
    }, pause);
  }

  async show(address) {
    const before = this.image.src;
    this.image.src = address;
    await this.image.decode();
    if (before) URL.revokeObjectURL(before);
  }

  clear(text) {
    this.shownNumber = this.state.shown.number;
    if (this.image.src) URL.revokeObjectURL(this.image.src);
    this.image.removeAttribute("src");
    setText(this.empty, text);
  }
}

export class Live {
  constructor() {
    this.lanes = new Map();
    this.root = document.getElementById("lanes");
    this.kept = new Kept();
  }

  update(state) {
    const names = state.lanes.map((lane) => lane.name);
    for (const [name, lane] of this.lanes) {
      if (!names.includes(name)) {
        lane.root.remove();
        this.lanes.delete(name);
      }
    }
    for (const laneState of state.lanes) {
      const camera = state.cameras.find((item) => item.name === laneState.name);
      this.lane(laneState.name).update(laneState, camera ? camera.source : "");
    }
    this.root.dataset.count = String(this.lanes.size);
    this.tallies(state);
    this.kept.update(state);
  }

  lane(name) {
    let lane = this.lanes.get(name);
    if (!lane) {
      lane = new Lane(name);
      this.lanes.set(name, lane);
      this.root.append(lane.root);
    }
    return lane;
  }

  points(byLane) {
    for (const [name, points] of Object.entries(byLane)) this.lane(name).trace.push(points);
  }

  draw() {
    for (const lane of this.lanes.values()) lane.trace.draw();
  }

  tick() {
    for (const lane of this.lanes.values()) lane.tick();
  }

  tallies(state) {
    const sum = (key) => state.lanes.reduce((total, lane) => total + lane[key], 0);
    const frames = sum("frames");
    const rejected = sum("rejected") + sum("unjudged");
    const pairs = [["Bundle", state.bundle], ["Engine", state.engine ?? "being opened"], ["Running for", duration(state.time - state.started)]];
    if (state.recipe !== null) pairs.unshift(["Recipe", state.recipe]);
    if (state.lanes.length > 1) pairs.push(["Frames", count(frames)], ["Rejected", `${count(rejected)} (${share(rejected, frames)})`]);
    facts(document.getElementById("tallies"), pairs);
  }
}

class Kept {
  constructor() {
    this.root = document.getElementById("kept");
    this.note = document.getElementById("kept-note");
    this.parts = [];
    this.version = null;
    this.began = null;
    this.busy = false;
    this.show();
  }

  async update(state) {
    if (this.began !== state.started) {
      // The numbers of its parts begin again.
      this.began = state.started;
      this.version = null;
      this.root.replaceChildren();
    }
    const version = state.kept;
    if (version === this.version || this.busy) return;
    this.busy = true;
    try {
      this.parts = await (await ask("/api/parts")).json();
      this.version = version;
      this.show();
    } catch {
      // It is asked for again with the next state.
    }
    setTimeout(() => { this.busy = false; }, RETRY_MS);
  }

  show() {
    const known = new Map([...this.root.querySelectorAll("[data-id]")].map((item) => [item.dataset.id, item]));
    const items = this.parts.map((kept) => known.get(String(kept.id)) ?? this.item(kept));
    if (!items.length) items.push(make("li", { class: "kept-empty" }, "None so far. Parts that are rejected or for review appear here with their pictures."));
    this.root.replaceChildren(...items);
    setText(this.note, this.parts.length ? `the last ${this.parts.length}, newest first` : "");
  }

  item(kept) {
    const { part } = kept;
    const word = WORDS[part.verdict];
    const title = `${word}, ${clock(part.captured_at)}, score ${score(part.score, part.threshold)}`;
    const picture = kept.has_picture
      ? laterPicture(partPicture(kept.id), { ongone: (event) => event.target.replaceWith(blank("Picture no longer stored")) })
      : blank(part.reason ?? "No picture");
    const button = make("button", { class: "kept-part", "data-verdict": part.verdict, "aria-label": title, onclick: () => openPart(kept) },
      picture,
      make("span", { class: "kept-word" }, icon(part.verdict), word, part.camera === null ? null : make("span", { class: "kept-camera" }, part.camera)),
      make("span", { class: "kept-facts" }, make("b", {}, score(part.score, part.threshold)), make("span", {}, clock(part.captured_at))));
    return make("li", { "data-id": kept.id }, button);
  }
}

function blank(text) {
  return make("span", { class: "blank" }, text);
}
