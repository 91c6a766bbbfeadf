// The runs that the server was given, and their reports, opened in a frame that runs no script.

import { get, post } from "./api.js";
import { el, fill } from "./dom.js";
import { moment, number, percent, t } from "./words.js";

export async function show(place) {
  const runs = (await get("/afina/api/runs")).data;
  const title = el("h1", {}, t("view_reports"));
  if (!runs.length) {
    fill(place, title, el("div.empty", {}, el("h2", {}, t("reports_empty_title")), el("p", {}, t("reports_empty")), el("pre", {}, "afina serve runs/noticias")));
    return;
  }
  const wanted = decodeURIComponent(location.hash.split("/")[2] ?? "");
  const run = runs.find((one) => one.id === wanted && one.report);
  if (run) await opened(place, run);
  else fill(place, title, el("ul.runs", { "aria-label": t("run_list") }, runs.map((one) => el("li", {}, card(one)))));

  function card(one) {
    const facts = [one.base, one.created ? moment(one.created) : null, one.num_test ? t("test_items", { n: number(one.num_test) }) : null].filter(Boolean);
    const inside = [
      el("span.runhead", {}, el("b", {}, one.id), one.kind ? el("span.kind", {}, t(`kind_${one.kind}`)) : null),
      el("span.quiet", {}, facts.join(" · ")),
      one.verdict ? el("span.verdict", { lang: "en" }, one.verdict) : null,
      systems(one.systems),
    ];
    if (one.report) return el("a.card", { href: `#/reports/${encodeURIComponent(one.id)}` }, inside);
    return el("div.card", {}, inside, el("span.quiet", {}, `${t("no_report")}. ${t("write_report")} `, el("code", {}, `afina report ${one.folder}`)));
  }

  function systems(found) {
    const shown = found.filter((one) => Number.isFinite(one.exact_match));
    if (!shown.length) return null;
    return el("span.systems", {}, shown.map((one) => el("span", {}, one.name, " ", el("b", {}, percent(one.exact_match)))), el("span.quiet", {}, `(${t("exact_match")})`));
  }
}

async function opened(place, run) {
  const { url } = await post("/afina/api/reports", { run: run.id });
  const name = t("report_of", { name: run.id });
  fill(place,
    el("div.heading", {}, el("h1", {}, name), el("div.row", {}, el("a.button", { href: "#/reports" }, t("back")),
      el("a.button", { href: url, target: "_blank", rel: "noopener" }, t("open_alone")))),
    el("iframe.report", { src: url, title: name, sandbox: "allow-popups", referrerpolicy: "no-referrer" }));
}
