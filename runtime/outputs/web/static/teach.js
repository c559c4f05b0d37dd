// Teaching: parts that are marked as good, and a new bundle in the place of the one in use.

import { WORDS, ask, clock, count, duration, icon, laterPicture, make, partPicture, score, setText, share, teachingPicture } from "/static/ui.js";
import { openPart, openPicture } from "/static/zoom.js";

const SHORTEST_NAME = 2;
const PATIENCE_S = 20; // for the station to take over what is in place
const PAUSE_MS = 500; // between two looks
const REMOVE = "Remove all";
const CONFIRM_MS = 4000;
const COLLECTED = 100; // parts, for a rate of 1 %
const MODES = {
  append: ["Add the marked parts", "What was learned stays. The collected parts set the threshold."],
  new: ["Learn everything again", "From the collected and the marked parts alone, which are also left out in turn to set the threshold."],
};

export class Teach {
  constructor() {
    this.root = document.getElementById("teach");
    this.state = null; // of the station
    this.facts = null; // of teaching
    this.parts = [];
    this.mode = null;
    this.key = "";
    this.isOpen = false;
    this.busy = false;
    this.build();
  }

  build() {
    this.note = make("p", { class: "desk-note", role: "status", hidden: true });
    this.person = make("input", { type: "text", id: "teach-person", maxlength: "60", autocomplete: "off", oninput: () => this.buttons() });
    this.result = make("p", { class: "desk-result", role: "status" });
    this.root.append(
      make("div", { class: "desk-head" }, make("h1", {}, "Teach"), make("p", { class: "muted" }, "Nothing changes until the new bundle has passed its self-test.")),
      this.note,
      make("div", { class: "desk-side" }, this.rejects(), this.good()),
      make("div", { class: "desk-side" }, this.teaching(), this.place()));
  }

  rejects() {
    this.marks = make("ul", { class: "tiles" });
    return make("section", { class: "card", "aria-labelledby": "marks-title" },
      make("h2", { id: "marks-title" }, "Rejected, and good"),
      make("p", { class: "legend" }, "Mark the parts that are really good. Look at each one before: the defects of a defective part among them would not be found any more."),
      this.marks);
  }

  good() {
    this.number = make("input", { type: "number", id: "teach-count", min: "1", max: "500", value: String(COLLECTED), oninput: () => this.buttons() });
    this.collect = make("button", { class: "button", type: "button", onclick: () => this.toggleCollecting() }, "Collect");
    this.clear = make("button", { class: "button", type: "button", onclick: () => this.removeGood() }, REMOVE);
    this.line = make("p", { class: "tile-line", role: "status" });
    this.collected = make("ul", { class: "tiles small" });
    return make("section", { class: "card", "aria-labelledby": "good-title" },
      make("h2", { id: "good-title" }, "Good parts"),
      make("p", { class: "legend" }, "Let good parts pass, and collect them as they come, whatever the verdict: they set the new threshold. Remove those that are defective."),
      make("div", { class: "collect" }, make("div", {}, make("label", { for: "teach-count" }, "Parts"), this.number), this.collect, this.clear),
      this.line, this.collected);
  }

  teaching() {
    this.modes = make("fieldset", { class: "modes" }, make("legend", {}, "What to do"));
    this.start = make("button", { class: "button primary", type: "submit" }, "Teach");
    this.stop = make("button", { class: "button", type: "button", hidden: true, onclick: () => this.change("stop", {}) }, "Stop");
    this.missing = make("p", { class: "missing" });
    this.steps = make("ul", { class: "rows steps" });
    this.lines = make("pre", { class: "lines", tabindex: "0", "aria-label": "Messages of the teaching run" });
    this.log = make("details", { hidden: true }, make("summary", {}, "Messages"), this.lines);
    return make("form", { class: "card", novalidate: true, onsubmit: (event) => { event.preventDefault(); this.begin(); } },
      make("h2", {}, "Teach the bundle"),
      make("div", { class: "fields" },
        make("div", {}, make("label", { for: "teach-person" }, "Your name, for the audit log"), this.person),
        this.modes, this.missing,
        make("div", { class: "desk-buttons" }, this.start, this.stop),
        this.result, this.steps, this.log));
  }

  place() {
    this.pairs = make("dl", { class: "pairs" });
    this.undo = make("button", { class: "button", type: "button", hidden: true, onclick: () => this.bringBack() });
    this.undoNote = make("p", { class: "muted", hidden: true });
    return make("section", { class: "card place" }, make("h2", {}, "Bundles"), this.pairs, this.undo, this.undoNote);
  }

  // What the station sends.

  update(state) {
    if (this.state && this.state.started !== state.started) {
      // Its numbers begin again.
      this.marks.replaceChildren();
      this.collected.replaceChildren();
    }
    this.state = state;
    if (this.isOpen) this.read();
  }

  open() {
    this.isOpen = true;
    this.key = "";
    this.read();
  }

  close() {
    this.isOpen = false;
  }

  // Asks again where something is new, which the numbers in the state say.
  async read() {
    const { state } = this;
    if (!state || this.busy) return;
    const key = [state.started, state.teaching, state.kept, state.bundle, state.phase].join();
    if (key === this.key) {
      this.showJob();
      return;
    }
    this.busy = true;
    try {
      const parts = await (await ask("/api/parts")).json();
      this.take(await (await ask("/api/teaching")).json(), parts);
      this.key = key;
    } catch (error) {
      this.tell(error.message, false);
    }
    setTimeout(() => { this.busy = false; }, PAUSE_MS);
  }

  take(facts, parts = this.parts) {
    this.facts = facts;
    this.parts = parts;
    const names = facts.modes.map(({ name }) => name);
    if (!names.includes(this.mode)) this.mode = names[0] ?? null;
    // What runs, and what is being taken over, is said below.
    const { job } = facts;
    const waits = job !== null && job.phase === "installed" && !job.in_use;
    this.note.hidden = facts.fault === null || waits;
    setText(this.note, facts.fault === null ? "" : `The bundle cannot be taught here: ${facts.fault}.`);
    this.showModes();
    this.showMarks();
    this.showGood();
    this.showPlace();
    this.showJob();
    this.buttons();
  }

  // Changing.

  name() {
    const name = this.person.value.trim();
    if (name.length >= SHORTEST_NAME) return name;
    this.tell("Your name is needed for the audit log.", false);
    this.person.focus();
    return null;
  }

  async change(what, body) {
    const person = this.name();
    if (person === null) return false;
    try {
      this.take(await (await ask(`/api/teaching/${what}`, { person, ...body })).json());
      this.tell("", true);
      return true;
    } catch (error) {
      this.tell(`Refused: ${error.message}`, false);
      this.key = "";
      return false;
    }
  }

  async begin() {
    if (this.start.disabled) return;
    this.start.disabled = true;
    if (await this.change("start", { mode: this.mode, bundle: this.facts.bundle })) this.person.value = "";
    this.buttons();
  }

  async bringBack() {
    const { previous, in_place: bundle } = this.facts;
    const person = this.name();
    if (person === null || !(await this.change("undo", { bundle }))) return;
    this.person.value = "";
    this.tell(`Bundle ${previous} was brought back in the name of ${person}. The station takes it over between two frames.`, true);
    this.buttons();
  }

  // The pictures cannot be brought back, so that it takes a second press. A dialog of the browser
  // would stop the page.
  async removeGood() {
    const asks = this.clear.textContent === REMOVE;
    clearTimeout(this.asked);
    if (asks && this.name() !== null) {
      setText(this.clear, `Remove ${count(this.goodOnes().length)}, really`);
      this.asked = setTimeout(() => setText(this.clear, REMOVE), CONFIRM_MS);
      return;
    }
    setText(this.clear, REMOVE);
    if (!asks) await this.change("remove", { picture: null, kind: "good" });
  }

  goodOnes() {
    return this.facts.pictures.filter(({ kind }) => kind === "good");
  }

  toggleCollecting() {
    const isOn = this.facts.collecting > 0;
    this.change("collect", { count: isOn ? 0 : Number(this.number.value) });
  }

  tell(text, ok) {
    this.result.dataset.ok = String(ok);
    setText(this.result, text);
    // On a tablet, the pictures that were pressed are far below it.
    if (!ok && this.isOpen) this.result.scrollIntoView({ block: "nearest" });
  }

  // Drawing.

  buttons() {
    const { facts } = this;
    if (!facts) return;
    const running = isRunning(facts.job);
    const able = facts.fault === null && !running;
    const mode = facts.modes.find(({ name }) => name === this.mode);
    const missing = mode ? mode.missing : null;
    const named = this.person.value.trim().length >= SHORTEST_NAME;
    const wanted = Number(this.number.value);
    this.start.disabled = !(able && mode && missing === null && named);
    this.start.hidden = running;
    this.stop.hidden = !running || facts.job.phase !== "teaching";
    this.collect.disabled = !able || (facts.collecting === 0 && !(Number.isInteger(wanted) && wanted >= 1 && wanted <= facts.most_pictures));
    this.number.disabled = !able || facts.collecting > 0;
    // What was collected may be removed whatever the bundle is.
    this.clear.disabled = running || this.goodOnes().length === 0;
    this.undo.disabled = running || facts.undo_fault !== null;
    for (const button of this.root.querySelectorAll(".tile button.mark")) {
      const isMarked = button.getAttribute("aria-pressed") === "true";
      button.disabled = button.dataset.gone === "true" || (isMarked ? running : !able);
    }
    for (const button of this.root.querySelectorAll(".tile button.drop")) button.disabled = running;
    this.missing.hidden = !able;
    let text = "";
    if (missing) text = `Missing: ${missing}.`;
    else if (mode) text = `The threshold may reject ${share(mode.false_alarm_rate, 1)} of good parts.`;
    setText(this.missing, text);
  }

  showModes() {
    const { modes } = this.facts;
    const key = modes.map(({ name }) => name).join();
    this.modes.hidden = modes.length < 2;
    if (this.modes.dataset.key === key) return;
    this.modes.dataset.key = key;
    const items = modes.map(({ name }) => {
      const [word, text] = MODES[name];
      const box = make("input", { type: "radio", name: "mode", value: name, checked: name === this.mode, onchange: () => { this.mode = name; this.buttons(); } });
      return make("label", { class: "mode" }, box, make("span", {}, make("b", {}, word), make("span", { class: "muted" }, text)));
    });
    this.modes.replaceChildren(this.modes.firstElementChild, ...items);
  }

  showMarks() {
    const { facts } = this;
    const marked = facts.pictures.filter(({ kind }) => kind === "false_reject");
    const rejects = this.parts.map((kept) => ({ kept, picture: marked.find((picture) => picture.part_id === kept.id) ?? null }));
    const older = marked.filter((picture) => !this.parts.some(({ id }) => id === picture.part_id)).map((picture) => ({ kept: null, picture }));
    const items = [...rejects, ...older].filter(({ kept, picture }) => picture !== null || kept.has_picture).map(({ kept, picture }) => this.mark(kept, picture));
    if (!items.length) items.push(make("li", { class: "tiles-empty" }, "No part was rejected or reviewed so far."));
    keep(this.marks, items);
  }

  mark(kept, picture) {
    const { part } = kept ?? picture;
    const on = picture !== null;
    const gone = !on && !this.facts.markable.includes(kept.id);
    const key = `${kept ? kept.id : `p${picture.id}`} ${on ? picture.id : 0} ${gone}`;
    return { key, make: () => {
      const src = kept ? partPicture(kept.id) : teachingPicture(picture.id);
      const image = laterPicture(src, { alt: `${WORDS[part.verdict]}, score ${score(part.score, part.threshold)}` });
      const view = look(image, () => (kept ? openPart(kept) : openPicture(part, src, "Part")));
      const press = on ? () => this.change("remove", { picture: picture.id }) : () => this.change("mark", { part: kept.id });
      const text = on ? `Good: ${picture.person}` : gone ? "No image any more" : "Not a defect";
      const button = make("button", { class: "mark", type: "button", "aria-pressed": String(on), "data-gone": String(gone), onclick: press }, text);
      return make("li", { class: "tile", "data-on": String(on) }, view,
        make("span", { class: "tile-facts" }, make("b", {}, score(part.score, part.threshold)), make("span", {}, clock(part.captured_at))), button);
    } };
  }

  showGood() {
    const { facts } = this;
    const good = this.goodOnes();
    const rejected = good.filter(({ part }) => part.verdict !== "good");
    let text = "None so far.";
    if (good.length) text = `${count(good.length)} collected${rejected.length ? `, of which ${count(rejected.length)} would be rejected or reviewed now: look at these first` : ""}.`;
    if (facts.collecting) text = `${text} ${count(facts.collecting)} more to come.`;
    if (facts.collection_fault) text = `${text} Collecting ended: ${facts.collection_fault}.`;
    setText(this.line, text);
    setText(this.collect, facts.collecting ? "Stop collecting" : "Collect");
    // The highest scores first, for a person to look at.
    const ordered = [...good].sort((a, b) => b.part.score - a.part.score);
    keep(this.collected, ordered.map((picture) => this.goodTile(picture)));
  }

  goodTile(picture) {
    const { part } = picture;
    const src = teachingPicture(picture.id);
    return { key: String(picture.id), make: () => make("li", { class: "tile", "data-verdict": part.verdict },
      look(laterPicture(src, { alt: `${WORDS[part.verdict]}, score ${score(part.score, part.threshold)}` }), () => openPicture(part, src, "Part")),
      make("span", { class: "tile-facts" }, make("b", {}, score(part.score, part.threshold)),
        make("button", { class: "drop", type: "button", "aria-label": `Remove the part with score ${score(part.score)}`, onclick: () => this.change("remove", { picture: picture.id }) }, "Remove"))) };
  }

  showPlace() {
    const { facts } = this;
    const rows = [["In use", facts.bundle]];
    if (facts.in_place !== facts.bundle) rows.push(["In its place", facts.in_place ?? "none"]);
    rows.push(["Method", facts.method], ["Before", facts.previous ?? "none"]);
    this.pairs.replaceChildren(...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
    this.undo.hidden = facts.previous === null;
    setText(this.undo, `Bring back ${facts.previous}`);
    this.undoNote.hidden = facts.undo_fault === null;
    setText(this.undoNote, facts.undo_fault ?? "");
  }

  showJob() {
    const { facts, state } = this;
    if (!facts) return;
    const { job } = facts;
    this.log.hidden = job === null;
    if (job === null) return;
    setText(this.lines, job.lines.join("\n"));
    const now = state ? state.time : job.started;
    const steps = [];
    const step = (name, text, more = "") => {
      const mark = icon(name);
      mark.classList.add(name === "good" ? "ok" : name === "waiting" ? "open" : "wrong");
      steps.push(make("li", {}, mark, make("span", { class: "what" }, text), more ? make("span", { class: "more" }, more) : null));
    };
    if (job.phase === "failed") {
      step("anomalous", `Not taught: ${job.reason}`, `Started by ${job.person} at ${clock(job.started)}. The station judges as before.`);
    } else if (isRunning(job)) {
      step("waiting", job.phase === "teaching" ? "Learning" : "Putting in place", `for ${duration(now - job.started)}, started by ${job.person}`);
    } else {
      step("good", `Taught, tested and put in place: bundle ${job.bundle}`, `Started by ${job.person} at ${clock(job.started)}, took ${duration(job.ended - job.started)}`);
      if (job.in_use) step("good", "The station judges with it");
      else if (facts.in_place !== job.bundle) step("waiting", "Another bundle is in the place by now");
      else if (now - job.ended < PATIENCE_S) step("waiting", "The station takes it over between two frames");
      else step("review", "No part was judged with it yet", "The warnings under Health say why if it was refused. Bring the bundle before it back then.");
    }
    this.steps.replaceChildren(...steps);
  }
}

// An image that is shown large when it is pressed.
function look(image, open) {
  return make("button", { class: "look", type: "button", "aria-label": "Look at it", onclick: open }, image);
}

function isRunning(job) {
  return job !== null && (job.phase === "teaching" || job.phase === "installing");
}

// Leaves the elements alone whose keys are the same, with their pictures and the focus.
function keep(list, items) {
  const known = new Map([...list.children].map((item) => [item.dataset.key, item]));
  const elements = items.map((item) => {
    if (item instanceof Element) return item;
    const element = known.get(item.key) ?? item.make();
    element.dataset.key = item.key;
    return element;
  });
  if (elements.length === list.children.length && elements.every((element, place) => element === list.children[place])) return;
  list.replaceChildren(...elements);
}
