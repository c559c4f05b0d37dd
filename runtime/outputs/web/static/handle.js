// A threshold that is dragged over the histogram, also with the keys of a slider.

import { make, score } from "/static/ui.js";

export class Handle {
  // `move` is called with the value that a person asks for, and `done` when the drag has ended.
  constructor(name, label, histogram, move, done) {
    this.histogram = histogram;
    this.move = move;
    this.done = done;
    this.value = 0;
    this.dragging = false;
    this.enabled = true;
    this.grip = make("span", { class: "grip" });
    this.label = label;
    this.root = make("div", {
      class: `handle ${name}`, role: "slider", tabindex: "0", "aria-label": `${label} above`, "aria-orientation": "horizontal",
      onpointerdown: (event) => this.start(event),
      onpointermove: (event) => this.drag(event),
      onpointerup: () => this.end(),
      onpointercancel: () => this.end(),
      onkeydown: (event) => this.key(event),
    }, this.grip);
  }

  set(value, enabled) {
    this.value = value;
    this.enabled = enabled;
    const text = score(value);
    this.root.setAttribute("aria-valuemin", String(this.histogram.low));
    this.root.setAttribute("aria-valuemax", String(this.histogram.high));
    this.root.setAttribute("aria-valuenow", String(value));
    this.root.setAttribute("aria-valuetext", text);
    this.root.setAttribute("aria-disabled", String(!enabled));
    this.grip.textContent = `${this.label} above ${text}`;
  }

  place() {
    this.root.style.left = `${this.histogram.x(this.value)}px`;
    // The grip stays within the plot.
    const room = this.histogram.canvas.clientWidth;
    const half = this.grip.offsetWidth / 2;
    const x = this.histogram.x(this.value);
    const shift = Math.max(half - x, 0) + Math.min(room - half - x, 0);
    this.grip.style.transform = `translateX(calc(-50% + ${shift}px))`;
  }

  start(event) {
    if (!this.enabled) return;
    this.dragging = true;
    this.offset = event.clientX - this.left() - this.histogram.x(this.value);
    this.root.setPointerCapture(event.pointerId);
    this.root.focus();
    event.preventDefault();
  }

  drag(event) {
    if (this.dragging) this.ask(this.histogram.value(event.clientX - this.left() - this.offset));
  }

  end() {
    if (!this.dragging) return;
    this.dragging = false;
    this.done();
  }

  key(event) {
    if (!this.enabled) return;
    const { low, high, step } = this.histogram;
    const small = 4 * step;
    const moves = {
      ArrowRight: small, ArrowUp: small, ArrowLeft: -small, ArrowDown: -small,
      PageUp: 10 * small, PageDown: -10 * small,
    };
    if (event.key in moves) this.ask(this.value + moves[event.key]);
    else if (event.key === "Home") this.ask(low);
    else if (event.key === "End") this.ask(high);
    else return;
    event.preventDefault();
  }

  ask(value) {
    const { low, high, step } = this.histogram;
    const inside = Math.min(Math.max(value, low), high);
    this.move(Number((Math.round(inside / step) * step).toPrecision(12)));
  }

  left() {
    return this.histogram.canvas.getBoundingClientRect().left;
  }
}
