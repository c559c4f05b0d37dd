// A part that was not good, large and with its facts.

import { WORDS, clock, facts, partPicture, score, setText } from "/static/ui.js";

export function openPart(kept) {
  const { part } = kept;
  setText(document.getElementById("zoom-title"), `${WORDS[part.verdict]}${part.part === null ? "" : `: part ${part.part}`}`);
  const image = document.getElementById("zoom-picture");
  image.hidden = !kept.has_picture;
  if (kept.has_picture) image.src = partPicture(kept.id);
  image.alt = `Part with its anomaly map, ${part.regions_total} regions`;
  const pairs = [
    ["Score", score(part.score, part.threshold, part.review_threshold)],
    ["Reject above", score(part.threshold)],
    ["Review above", part.review_threshold === null ? "none" : score(part.review_threshold)],
    ["Time", clock(part.captured_at)],
    ["Camera", part.camera ?? part.lane],
    ["Regions", String(part.regions_total)],
  ];
  if (part.reason) pairs.push(["Reason", part.reason]);
  facts(document.getElementById("zoom-facts"), pairs);
  document.getElementById("zoom").showModal();
}
