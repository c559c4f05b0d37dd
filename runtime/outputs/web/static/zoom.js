// A part that was not good, large and with its facts.

import { WORDS, clock, facts, partPicture, score, setText } from "/static/ui.js";

export function openPart(kept) {
  openPicture(kept.part, kept.has_picture ? partPicture(kept.id) : null, "Part with its anomaly map");
}

// The address of the picture may be null.
export function openPicture(part, src, name) {
  setText(document.getElementById("zoom-title"), `${WORDS[part.verdict]}${part.part === null ? "" : `: part ${part.part}`}`);
  const image = document.getElementById("zoom-picture");
  image.hidden = src === null;
  if (src !== null) image.src = src;
  image.alt = `${name}, ${part.regions_total} regions`;
  const pairs = [
    ["Score", score(part.score, part.threshold, part.review_threshold)],
    ["Reject above", score(part.threshold)],
    ["Review above", part.review_threshold === null ? "none" : score(part.review_threshold)],
    ["Time", clock(part.captured_at)],
    ["Camera", part.camera || part.lane || "1"],
    ["Regions", String(part.regions_total)],
  ];
  if (part.reason) pairs.push(["Reason", part.reason]);
  facts(document.getElementById("zoom-facts"), pairs);
  document.getElementById("zoom").showModal();
}
