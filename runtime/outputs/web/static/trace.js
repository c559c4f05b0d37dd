// The scores of the last frames of a camera against both thresholds.

import { VERDICTS, colours, count, score, sharp } from "/static/ui.js";

const MOST = 2000;
const STEP = 3; // pixels between two frames
const TOP = 18;
const BOTTOM = 8;

export class Trace {
  constructor(canvas) {
    this.canvas = canvas;
    this.points = [];
    this.threshold = null;
    this.review = null;
  }

  push(points) {
    if (!points.length) return;
    const last = this.points.at(-1);
    // The station was started again.
    if (last && points[0][0] <= last[0]) this.points = [];
    this.points.push(...points);
    if (this.points.length > MOST) this.points.splice(0, this.points.length - MOST);
  }

  setLevels(threshold, review) {
    this.threshold = threshold;
    this.review = review;
  }

  draw() {
    if (!this.canvas.clientWidth) return;
    const { context, width, height } = sharp(this.canvas);
    const colour = colours();
    const shown = this.points.slice(-Math.floor((width - 8) / STEP));
    this.describe(shown);
    if (!shown.length || this.threshold === null) {
      context.fillStyle = colour.muted;
      context.fillText("No scores yet", 0, height / 2);
      return;
    }
    const y = this.scale(shown, height);
    const left = width - 6 - STEP * (shown.length - 1);
    this.line(context, shown, left, y, colour);
    this.level(context, width, y(this.threshold), -5, colour["bad-text"], colour.surface, `Reject above ${score(this.threshold)}`, []);
    if (this.review !== null) {
      // Below its line where the other one is near.
      const side = y(this.review) - y(this.threshold) < 20 ? 13 : -5;
      this.level(context, width, y(this.review), side, colour["review-text"], colour.surface, `Review above ${score(this.review)}`, [5, 4]);
    }
    shown.forEach((point, place) => this.mark(context, point, left + STEP * place, y, height, colour));
  }

  scale(shown, height) {
    const scores = shown.map((point) => point[1]).filter((value) => value !== null);
    const levels = [this.threshold, this.review ?? this.threshold];
    const low = Math.min(...levels, ...scores);
    const distance = Math.max(this.threshold - low, 1e-9);
    // A very bad part must not flatten the others.
    const high = Math.min(Math.max(this.threshold + 0.3 * distance, ...scores), this.threshold + 0.8 * distance);
    const range = height - TOP - BOTTOM;
    return (value) => TOP + range * (1 - (Math.min(value, high) - low) / (high - low));
  }

  level(context, width, y, side, colour, surface, text, dashes) {
    context.strokeStyle = colour;
    context.lineWidth = 1.5;
    context.setLineDash(dashes);
    context.beginPath();
    context.moveTo(0, y);
    context.lineTo(width, y);
    context.stroke();
    context.setLineDash([]);
    const size = context.measureText(text).width;
    context.fillStyle = surface;
    context.globalAlpha = 0.85;
    context.fillRect(0, y + side - 12, size + 6, 15);
    context.globalAlpha = 1;
    context.fillStyle = colour;
    context.fillText(text, 1, y + side);
  }

  line(context, shown, left, y, colour) {
    context.strokeStyle = colour["line-strong"];
    context.lineWidth = 1;
    context.globalAlpha = 0.55;
    context.beginPath();
    let pen = false;
    shown.forEach(([, value], place) => {
      if (value === null) pen = false;
      else if (pen) context.lineTo(left + STEP * place, y(value));
      else {
        context.moveTo(left + STEP * place, y(value));
        pen = true;
      }
    });
    context.stroke();
    context.globalAlpha = 1;
  }

  // Each verdict has a shape of its own: dot, triangle, cross, bar.
  mark(context, [, value, code], x, y, height, colour) {
    const verdict = VERDICTS[code];
    if (verdict === "unjudged") {
      context.fillStyle = colour.none;
      context.fillRect(x - 1, TOP, 2, height - TOP - BOTTOM);
      return;
    }
    const at = y(value);
    if (verdict === "good") {
      context.fillStyle = colour.good;
      context.beginPath();
      context.arc(x, at, 1.7, 0, 7);
      context.fill();
    } else if (verdict === "review") {
      context.fillStyle = colour["review-text"];
      context.beginPath();
      context.moveTo(x, at - 5);
      context.lineTo(x + 4.5, at + 3);
      context.lineTo(x - 4.5, at + 3);
      context.fill();
    } else {
      context.strokeStyle = colour["bad-text"];
      context.lineWidth = 2.2;
      context.beginPath();
      context.moveTo(x - 4, at - 4);
      context.lineTo(x + 4, at + 4);
      context.moveTo(x + 4, at - 4);
      context.lineTo(x - 4, at + 4);
      context.stroke();
    }
  }

  describe(shown) {
    const counts = VERDICTS.map((_name, code) => shown.filter((point) => point[2] === code).length);
    const text = `Scores of the last ${count(shown.length)} frames: ${counts[2]} above the threshold of ${score(this.threshold)}, ${counts[1]} for review, ${counts[3]} not judged`;
    if (this.canvas.getAttribute("aria-label") !== text) this.canvas.setAttribute("aria-label", text);
  }
}
