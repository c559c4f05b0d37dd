// The threshold desk: what a threshold would have done, and saving it in the name of a person.

import { Handle } from "/static/handle.js";
import { Histogram } from "/static/histogram.js";
import { ask, clock, count, icon, laterPicture, make, partPicture, score, setText, share } from "/static/ui.js";

const MOST = 2000;
const SHORTEST_NAME = 2;
const PATIENCE_S = 20; // for the station to take over what was saved
const SHOWN_DIGITS = 6;
const ROWS = [["good", "Accept"], ["review", "Review"], ["anomalous", "Reject"]];

export class Desk {
  constructor() {
    this.root = document.getElementById("desk");
    this.state = null; // of the station
    this.facts = null; // of the bundle
    this.draft = null;
    this.scores = new Map();
    this.parts = [];
    this.saved = null;
    this.isOpen = false;
    this.loaded = new Set(); // lanes whose scores were asked for
    this.build();
  }

  build() {
    const canvas = make("canvas", { role: "img" });
    this.canvas = canvas;
    this.histogram = new Histogram(canvas);
    const done = () => this.fit();
    this.reject = new Handle("reject", "Reject", this.histogram, (value) => this.move("threshold", value), done);
    this.review = new Handle("review", "Review", this.histogram, (value) => this.move("review", value), done);
    this.note = make("p", { class: "desk-note", role: "status", hidden: true });
    this.line = make("p", { class: "effect-line", "aria-live": "polite" });
    this.caution = make("p", { class: "caution", role: "status", hidden: true }, icon("review"), "Held-out good images scored higher than this threshold: expect false alarms.");
    this.table = make("tbody");
    this.changed = make("div", { class: "changed" });
    const head = make("tr", {}, ...["Of these frames", "Saved", "This threshold", "Change"].map((text) => make("th", { scope: "col" }, text)));
    const chart = make("section", { class: "card desk-chart", "aria-labelledby": "chart-title" },
      make("h2", { id: "chart-title" }, "Scores of recent frames"),
      make("p", { class: "legend" }, "Drag a threshold, or move it with the arrow keys. The bars have a square-root scale, so that single frames are seen."),
      make("div", { class: "plot" }, canvas, this.review.root, this.reject.root),
      make("div", { class: "effect" }, this.line, this.caution, make("table", {}, make("thead", {}, head), this.table), this.changed));
    this.root.append(
      make("div", { class: "desk-head" }, make("h1", {}, "Threshold"), make("p", { class: "muted" }, "Nothing changes until it is saved.")),
      this.note, chart, make("div", { class: "desk-side" }, this.form(), this.origin()));
  }

  form() {
    const number = (key) => make("input", { type: "number", step: "any", id: `desk-${key}`, oninput: (event) => this.type(key, event.target.value) });
    this.inputs = { threshold: number("threshold"), review: number("review") };
    this.person = make("input", { type: "text", id: "desk-person", maxlength: "60", autocomplete: "off", oninput: () => this.buttons() });
    this.save = make("button", { class: "button primary", type: "submit" }, "Save");
    this.reset = make("button", { class: "button", type: "button", onclick: () => this.discard() }, "Discard");
    this.undo = make("button", { class: "button", type: "button", onclick: () => this.bringBack() }, "Undo");
    this.result = make("p", { class: "desk-result", role: "status" });
    this.reviewField = make("div", {}, make("label", { for: "desk-review" }, "Review above"), this.inputs.review);
    return make("form", { class: "card", novalidate: true, onsubmit: (event) => { event.preventDefault(); this.store(); } },
      make("h2", {}, "Save"),
      make("div", { class: "fields" },
        make("div", { class: "two" },
          make("div", {}, make("label", { for: "desk-threshold" }, "Reject above"), this.inputs.threshold), this.reviewField),
        make("div", {}, make("label", { for: "desk-person" }, "Your name, for the audit log"), this.person),
        make("div", { class: "desk-buttons" }, this.save, this.reset, this.undo),
        this.result));
  }

  origin() {
    this.pairs = make("dl", { class: "pairs" });
    return make("section", { class: "card" }, make("h2", {}, "Where it comes from"), this.pairs);
  }

  // What the station sends.

  update(state) {
    const before = this.state;
    this.state = state;
    const key = (item) => JSON.stringify([item.bundle, item.own_thresholds, item.lanes.map((lane) => [lane.threshold, lane.review_threshold])]);
    if (this.isOpen && before && key(before) !== key(state)) this.read();
    if (this.isOpen && state.lanes.some(({ name }) => !this.loaded.has(name))) this.load();
    this.confirm();
  }

  points(byLane) {
    if (!this.isOpen) return;
    for (const [name, points] of Object.entries(byLane)) {
      const known = this.scores.get(name) ?? [];
      const last = known.at(-1)?.[0] ?? 0;
      const restarted = points.length > 0 && points.at(-1)[0] < last;
      const fresh = restarted ? points : points.filter((point) => point[0] > last);
      this.scores.set(name, [...(restarted ? [] : known), ...fresh].slice(-MOST));
    }
  }

  // Reading and writing.

  async open() {
    this.isOpen = true;
    await this.read();
    this.loaded.clear();
    await this.load();
  }

  // Asks for the scores of the lanes that it has none of yet.
  async load() {
    for (const { name } of this.state ? this.state.lanes : []) {
      if (this.loaded.has(name)) continue;
      this.loaded.add(name);
      try {
        const { points } = await (await ask(`/api/lanes/${encodeURIComponent(name)}/scores`)).json();
        this.scores.set(name, points);
      } catch {
        // A lane that has gone has no scores.
      }
    }
    this.fit();
  }

  async read() {
    try {
      this.take(await (await ask("/api/threshold")).json());
      this.parts = await (await ask("/api/parts")).json();
    } catch (error) {
      this.tell(error.message, false);
    }
    this.fit();
  }

  take(facts) {
    const isNew = !this.facts || this.facts.revision !== facts.revision || this.facts.bundle !== facts.bundle;
    this.facts = facts;
    if (isNew || !this.draft) this.draft = { threshold: facts.current.threshold, review: facts.current.review_threshold };
    this.note.hidden = facts.fault === null;
    setText(this.note, facts.fault ? `The threshold cannot be changed here: ${facts.fault}.` : "");
    this.reviewField.hidden = facts.current.review_threshold === null;
    this.review.root.hidden = facts.current.review_threshold === null;
    this.undo.hidden = facts.previous === null;
    if (facts.previous) setText(this.undo, `Bring back ${score(facts.previous.threshold)}`);
    this.showOrigin(facts);
  }

  showOrigin(facts) {
    const rows = [["Saved", facts.current.review_threshold === null ? score(facts.current.threshold) : `${score(facts.current.threshold)}, review ${score(facts.current.review_threshold)}`]];
    if (facts.moved_by !== null) rows.push(["Moved by", facts.moved_by]);
    const percent = (value) => `${Number((100 * value).toPrecision(2))}\u00a0%`;
    const [low, high] = facts.interval;
    const bounds = facts.folds ? `at most ${percent(high)}` : `${percent(low)} to ${percent(high)}`;
    rows.push(
      ["From good images", score(facts.computed.threshold)],
      ["False alarms", `${percent(facts.false_alarm_rate)} (${bounds} with ${percent(facts.confidence)} confidence), for the one from good images`],
      ["Good images", `${count(facts.good_images)}, scores ${score(facts.good.min)} to ${score(facts.good.max)}, mean ${score(facts.good.mean)}`]);
    if (facts.review_rate !== null) rows.push(["Review rate", percent(facts.review_rate)]);
    if (facts.scored_by !== null) rows.push(["Scores of", facts.scored_by]);
    rows.push(["Bundle", facts.bundle]);
    this.pairs.replaceChildren(...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  }

  body() {
    const review = this.draft.review === this.facts.current.review_threshold ? null : this.draft.review;
    return { person: this.person.value.trim(), revision: this.facts.revision, threshold: this.draft.threshold, review_threshold: review };
  }

  async store() {
    if (this.save.disabled) return;
    await this.change("/api/threshold", this.body(), `Saved in the name of ${this.person.value.trim()}.`);
  }

  async bringBack() {
    const { person, revision } = this.body();
    if (person.length < SHORTEST_NAME) {
      this.tell("Your name is needed for the audit log.", false);
      this.person.focus();
      return;
    }
    await this.change("/api/threshold/undo", { person, revision }, `Brought back in the name of ${person}.`);
  }

  async change(path, body, done) {
    this.save.disabled = true;
    this.undo.disabled = true;
    try {
      const facts = await (await ask(path, body)).json();
      this.person.value = "";
      this.saved = { at: this.state ? this.state.time : 0, text: done, threshold: facts.current.threshold, review: facts.current.review_threshold };
      this.take(facts);
      this.tell(`${done} The station takes it over between two frames.`, true);
      this.confirm();
    } catch (error) {
      this.tell(`Not saved: ${error.message}`, false);
      await this.read();
    }
    this.undo.disabled = false;
    this.fit();
  }

  // Says when the station judges with what was saved.
  confirm() {
    if (!this.saved || !this.state) return;
    const lanes = this.state.lanes.filter((lane) => !this.state.own_thresholds.includes(lane.name) && lane.threshold !== null);
    if (!lanes.length || !lanes.every((lane) => lane.threshold === this.saved.threshold && lane.review_threshold === this.saved.review)) {
      if (this.state.time - this.saved.at > PATIENCE_S) {
        this.tell(`${this.saved.text} No part was judged with it yet: the warnings under Health say why if it was refused. A stream with --keep-bundle takes it at its next start.`, true);
      }
      return;
    }
    this.tell(`${this.saved.text} The station judges with it since ${clock(this.state.time)}.`, true);
    this.saved = null;
  }

  tell(text, ok) {
    this.result.dataset.ok = String(ok);
    setText(this.result, text);
  }

  // Moving a threshold.

  move(key, value) {
    if (!this.draft || Number.isNaN(value)) return;
    this.draft[key] = value;
    const { threshold, review } = this.draft;
    // Neither passes the other.
    if (review !== null && review > threshold) this.draft[key] = key === "review" ? threshold : review;
    this.result.textContent = "";
    this.draw();
  }

  type(key, text) {
    const value = Number.parseFloat(text);
    if (Number.isFinite(value)) {
      this.draft[key] = value;
      this.draw();
    }
    this.buttons();
  }

  discard() {
    this.draft = { threshold: this.facts.current.threshold, review: this.facts.current.review_threshold };
    this.fit();
  }

  buttons() {
    const { facts, draft } = this;
    if (!facts || !draft) return;
    const changed = draft.threshold !== facts.current.threshold || draft.review !== facts.current.review_threshold;
    const fits = draft.review === null || draft.review <= draft.threshold;
    const named = this.person.value.trim().length >= SHORTEST_NAME;
    this.save.disabled = !(changed && fits && named && facts.fault === null);
    this.reset.disabled = !changed;
    this.undo.disabled = facts.fault !== null;
  }

  // Drawing.

  recent() {
    const own = this.state ? this.state.own_thresholds : [];
    const points = [];
    for (const [name, lane] of this.scores) {
      if (!own.includes(name)) points.push(...lane.filter((point) => point[1] !== null).map((point) => point[1]));
    }
    return points;
  }

  fit() {
    if (!this.facts || !this.draft) return;
    const levels = [this.draft.threshold, this.facts.current.threshold];
    if (this.draft.review !== null) levels.push(this.draft.review);
    this.histogram.setRange(this.recent(), this.facts.good, levels);
    this.draw();
  }

  draw() {
    const { facts, draft } = this;
    if (!facts || !draft || !this.canvas.clientWidth) return;
    const scores = this.recent();
    this.histogram.draw(scores, facts.good, draft.threshold, draft.review);
    const enabled = facts.fault === null;
    this.reject.set(draft.threshold, enabled);
    this.reject.place();
    if (draft.review !== null) {
      this.review.set(draft.review, enabled);
      this.review.place();
    }
    this.showNumbers();
    this.showEffect(scores);
    this.buttons();
  }

  showNumbers() {
    for (const [key, input] of Object.entries(this.inputs)) {
      const value = this.draft[key];
      input.disabled = this.facts.fault !== null;
      const text = value === null ? "" : String(Number(value.toPrecision(SHOWN_DIGITS)));
      if (document.activeElement !== input && input.value !== text) input.value = text;
    }
  }

  showEffect(scores) {
    const { facts, draft } = this;
    const before = tally(scores, facts.current.threshold, facts.current.review_threshold);
    const after = tally(scores, draft.threshold, draft.review);
    const more = after.anomalous - before.anomalous;
    const change = more === 0 ? "as many as now" : more > 0 ? `${count(more)} more than now` : `${count(-more)} fewer than now`;
    let text = `Of the last ${count(scores.length)} frames, ${count(after.anomalous)} would be rejected (${share(after.anomalous, scores.length)}), ${change}.`;
    if (!scores.length) text = "No frame was judged yet, so that a threshold can be compared with good images only.";
    this.caution.hidden = draft.threshold >= facts.good.max;
    setText(this.line, text);
    this.canvas.setAttribute("aria-label", `Histogram of scores. ${text}`);
    const rows = ROWS.filter(([key]) => key !== "review" || draft.review !== null).map(([key, word]) => {
      const difference = after[key] - before[key];
      const mark = icon(key);
      mark.classList.add(`i-${key}`);
      const sign = difference > 0 ? "+" : "−";
      return make("tr", {}, make("th", { scope: "row" }, mark, word), ...[count(before[key]), count(after[key]), difference ? `${sign}${count(Math.abs(difference))}` : "–"].map((cell) => make("td", {}, cell)));
    });
    this.table.replaceChildren(...rows);
    this.showChanged();
  }

  // Parts with pictures whose verdict would be another one.
  showChanged() {
    const own = this.state ? this.state.own_thresholds : [];
    const verdict = (value, { threshold, review }) => (value > threshold ? "anomalous" : review !== null && value > review ? "review" : "good");
    const { current } = this.facts;
    const before = { threshold: current.threshold, review: current.review_threshold };
    const changed = this.parts.filter(({ part, has_picture: has }) => has && part.score !== null && !own.includes(part.lane) && verdict(part.score, before) !== verdict(part.score, this.draft));
    const key = changed.map(({ id }) => id).join();
    if (this.changed.dataset.key === key) return;
    this.changed.dataset.key = key;
    this.changed.replaceChildren();
    if (!changed.length) return;
    const items = changed.slice(0, 8).map(({ id, part }) => make("li", {}, laterPicture(partPicture(id), { alt: `Part with score ${score(part.score)}` }), score(part.score)));
    this.changed.append(make("h3", {}, "Pictured parts whose verdict would be another one"), make("ul", {}, ...items));
  }
}

function tally(scores, threshold, review) {
  const counts = { good: 0, review: 0, anomalous: 0 };
  for (const value of scores) {
    if (value > threshold) counts.anomalous += 1;
    else if (review !== null && value > review) counts.review += 1;
    else counts.good += 1;
  }
  return counts;
}
