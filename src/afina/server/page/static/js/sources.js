// What an answer stands on: its sources as cards that open to the passage, with the cited sentence marked in it.

import { bar, el, fresh } from "./dom.js";
import { figure, number, t } from "./words.js";

/** Cards of the sources cited, in order. */
export function sourceCards(sources, found) {
  if (!sources.length) return el("p.quiet", {}, t("no_sources"));
  const title = el("h2", { id: fresh("sources") }, t("sources"));
  return el("section.sources", { "aria-labelledby": title.id }, title,
    el("ol.cards", {}, sources.map((source, i) => el("li", {}, card(source, found.find((hit) => hit.uid === source.uid), i + 1)))));
}

function card(source, hit, place) {
  const text = hit ? marked(hit.content, source) : [el("p", {}, t("quote_gone", { quote: source.quote }))];
  const passage = el("div.passage", { tabindex: "0", role: "group", "aria-label": t("source_open", { n: place }), dir: "auto" }, text);
  const details = el("details.source", { ontoggle: () => details.open && reveal(passage) },
    el("summary", {}, el("span.place", { "aria-hidden": "true" }, place), head(source)), passage);
  return details;
}

/** The cited sentence at the upper third of its box, however long the passage is. */
function reveal(passage) {
  const mark = passage.querySelector("mark");
  if (mark) passage.scrollTop = Math.max(0, mark.offsetTop - passage.offsetTop - passage.clientHeight / 3);
}

/** score: how sure the model is of a source it cites; of a passage that was only found, the search's own measure. */
function head({ title, uid, score, quote }) {
  const known = Number.isFinite(score) ? el("span", {}, t("score", { x: figure(score) })) : null;
  const said = quote ? el("span.said", { dir: "auto" }, `“${quote}”`) : null;
  return el("span.head", {}, el("span.title", { dir: "auto" }, title || uid), said, el("span.figures", {}, el("code", {}, uid), known));
}

/** A passage with one stretch of it marked. The server counts characters of Unicode, a string here counts halves. */
export function marked(content, { start, end, quote }) {
  const letters = Array.from(content);
  const [before, inside, after] = [letters.slice(0, start), letters.slice(start, end), letters.slice(end)].map((part) => part.join(""));
  if (!(start >= 0 && end > start) || inside !== quote) return [content, el("p.quote", {}, t("quote_gone", { quote }))];
  return [before, el("mark", {}, inside), after];
}

/** What was found besides, folded away. */
export function passages(found, sources) {
  const cited = new Set(sources.map((source) => source.uid));
  const others = found.filter((hit) => !cited.has(hit.uid));
  if (!others.length) return null;
  return el("details.also", {}, el("summary", {}, t(sources.length ? "also_found" : "found", { n: number(others.length) })),
    el("ul.cards", {}, others.map((hit) => el("li", {},
      el("details.source", {}, el("summary", {}, head(hit)), el("div.passage", { tabindex: "0", role: "group", "aria-label": hit.title || hit.uid, dir: "auto" }, hit.content))))));
}

/** said: the refusal in the question's own language, which may be another than the page's. */
export function absent(said) {
  return el("div.absent", {}, el("b", {}, said || t("absent_title")), el("p", {}, t("absent_about")));
}

export function supportLine(support) {
  return el("div.support", { title: t("support_about") }, el("span", {}, t("support")), bar(support, number(support, 2)));
}
