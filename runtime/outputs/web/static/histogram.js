// The histogram of recent scores, coloured by draft thresholds, over the range of good images.

import { colours, sharp } from "/static/ui.js";

const BINS = 72;
const TOP = 70;
const FOOT = 64; // below the axis: good images and labels
const SIDE = 26;

export class Histogram {
  constructor(canvas) {
    this.canvas = canvas;
    this.low = 0;
    this.high = 1;
  }

  // The range that is shown. It stays while a handle is dragged.
  setRange(scores, good, levels) {
    const low = Math.min(scores.length ? Math.min(...scores) : good.min, good.min, ...levels);
    // What is far above the thresholds is in the last bin.
    const top = Math.max(good.max, ...levels);
    const distance = Math.max(top - low, 1e-9);
    this.low = low - 0.06 * distance;
    this.high = top + 0.6 * distance;
  }

  x(value) {
    const width = this.canvas.clientWidth - 2 * SIDE;
    return SIDE + (width * (value - this.low)) / (this.high - this.low);
  }

  value(x) {
    const width = this.canvas.clientWidth - 2 * SIDE;
    return this.low + ((x - SIDE) / width) * (this.high - this.low);
  }

  // A step that is a whole number of the last digit that can be seen.
  get step() {
    return 10 ** (Math.floor(Math.log10(this.high - this.low)) - 3);
  }

  draw(scores, good, threshold, review) {
    const { context, width, height } = sharp(this.canvas);
    const colour = colours();
    const base = height - FOOT;
    this.bars(context, scores, threshold, review, base, width, colour);
    context.fillStyle = colour["line-strong"];
    context.fillRect(SIDE, base, width - 2 * SIDE, 1);
    this.goodImages(context, good, base, colour);
    this.labels(context, height, width, colour);
  }

  bars(context, scores, threshold, review, base, width, colour) {
    const bins = new Array(BINS).fill(0);
    const size = (this.high - this.low) / BINS;
    for (const value of scores) {
      const place = Math.floor((value - this.low) / size);
      bins[Math.max(0, Math.min(BINS - 1, place))] += 1;
    }
    const most = Math.max(1, ...bins);
    const shape = new Path2D();
    bins.forEach((number, place) => {
      if (!number) return;
      const left = this.x(this.low + place * size);
      const right = this.x(this.low + (place + 1) * size);
      // The root shows single frames beside thousands.
      const tall = Math.max(4, (base - TOP) * Math.sqrt(number / most));
      shape.rect(left + 0.5, base - tall, Math.max(1, right - left - 1), tall);
    });
    const cuts = review === null ? [threshold] : [review, threshold];
    const fills = review === null ? [colour.good, colour["bad-text"]] : [colour.good, colour.review, colour["bad-text"]];
    const edges = [0, ...cuts.map((cut) => this.x(cut)), width];
    const strokes = fills.map((fill) => (fill === colour.review ? colour["review-text"] : null));
    fills.forEach((fill, zone) => {
      context.save();
      context.beginPath();
      context.rect(edges[zone], 0, Math.max(0, edges[zone + 1] - edges[zone]), base);
      context.clip();
      context.fillStyle = fill;
      context.fill(shape);
      if (strokes[zone]) {
        context.strokeStyle = strokes[zone];
        context.stroke(shape);
      }
      if (zone === fills.length - 1) this.hatch(context, shape, edges[zone], width, base, colour);
      context.restore();
    });
  }

  // What is rejected differs by its pattern, too.
  hatch(context, shape, left, right, base, colour) {
    context.clip(shape);
    context.strokeStyle = colour.surface;
    context.lineWidth = 1.5;
    context.globalAlpha = 0.6;
    context.beginPath();
    for (let x = left - base; x < right; x += 7) {
      context.moveTo(x, base);
      context.lineTo(x + base, 0);
    }
    context.stroke();
    context.globalAlpha = 1;
  }

  goodImages(context, good, base, colour) {
    const y = base + 16;
    const [left, right] = [this.x(good.min), this.x(good.max)];
    const from = Math.max(this.x(good.mean - good.std), left);
    const to = Math.min(this.x(good.mean + good.std), right);
    context.fillStyle = colour.accent;
    context.fillRect(left, y - 1, Math.max(2, right - left), 2);
    context.fillRect(left, y - 5, 2, 10);
    context.fillRect(right - 2, y - 5, 2, 10);
    context.globalAlpha = 0.3;
    context.fillRect(from, y - 6, Math.max(2, to - from), 12);
    context.globalAlpha = 1;
    context.fillRect(this.x(good.mean) - 1.5, y - 7, 3, 14);
    const text = "held-out good images";
    const size = context.measureText(text).width;
    const place = right + 8 + size < this.canvas.clientWidth ? right + 8 : Math.max(0, left - size - 8);
    context.fillText(text, place, y + 4);
  }

  labels(context, height, width, colour) {
    context.fillStyle = colour.muted;
    context.textAlign = "center";
    for (let part = 0; part <= 4; part += 1) {
      const value = this.low + (part / 4) * (this.high - this.low);
      const x = Math.max(20, Math.min(width - 20, this.x(value)));
      // The last bin holds all that is higher.
      const text = String(Number(value.toPrecision(3)));
      context.fillText(part === 4 ? `≥ ${text}` : text, x, height - 14);
    }
    context.textAlign = "left";
  }
}
