// A form for each specialist, made from its task: a box for each input, and for each field of the answer a bar that
// shows how sure the model is, with the number beside it.

import { post, Trouble } from "./api.js";
import { bar, el, fill, fresh, labelled, speak } from "./dom.js";
import { number, percent, t } from "./words.js";

const kept = { model: null, inputs: {} };
const MOST_LABELS = 12;

export async function show(place, { models }) {
  const specialists = (await models()).filter((model) => "inputs" in model && !(model.kind === "assistant"));
  const title = el("h1", {}, t("view_form"));
  if (!specialists.length) {
    fill(place, title, el("div.empty", {}, el("h2", {}, t("form_empty_title")), el("p", {}, t("form_empty")), el("pre", {}, "afina serve runs/noticias")));
    return null;
  }
  if (!specialists.some((one) => one.id === kept.model)) kept.model = specialists[0].id;
  const body = el("div");
  const choose = el("select", { onchange: (event) => { kept.model = event.target.value; draw(); } },
    specialists.map((one) => el("option", { value: one.id, selected: one.id === kept.model }, one.id)));
  fill(place, title, specialists.length > 1 ? el("div.choose", {}, labelled(t("specialist"), choose)) : null, body);
  let running = null;
  draw();
  return () => running?.abort();

  function draw() {
    running?.abort();
    const model = specialists.find((one) => one.id === kept.model);
    const texts = (kept.inputs[model.id] ??= {});
    const result = el("section.result", { "aria-label": t("answer") }, el("p.quiet", {}, t("form_waiting")));
    const wrong = el("p.wrong", { role: "alert" });
    const button = el("button.primary", {}, t("form_go"));
    const boxes = model.inputs.map((name) =>
      labelled(name, el("textarea", { rows: model.inputs.length > 1 ? 3 : 5, value: texts[name] ?? "", oninput: (event) => { texts[name] = event.target.value; fill(wrong); } })));
    const submit = async (event) => {
      event.preventDefault();
      if (running) return;
      if (!model.inputs.some((name) => texts[name]?.trim())) {
        fill(wrong, t("form_blank"));
        boxes[0].querySelector("textarea").focus();
        return;
      }
      fill(wrong);
      running = new AbortController();
      button.disabled = true;
      result.setAttribute("aria-busy", "true");
      fill(result, el("p.waiting", {}, t("form_asking")));
      try {
        const inputs = Object.fromEntries(model.inputs.map((name) => [name, texts[name] ?? ""]));
        const answer = await post("/afina/api/predict", { model: model.id, inputs }, running.signal);
        fill(result, shown(model, answer));
        speak(t("answer_ready"));
      } catch (error) {
        fill(result);
        if (!(error instanceof Trouble)) throw error;
        if (error.kind !== "stopped") fill(result, el("p.wrong", { role: "alert" }, error.message));
      } finally {
        running = null;
        button.disabled = false;
        result.setAttribute("aria-busy", "false");
      }
    };
    fill(body,
      el("p.lead", {}, specialists.length > 1 ? null : el("b", {}, model.id), el("span.kind", {}, t("about_fine-tuned", { base: model.base }))),
      el("p.instruction", { dir: "auto" }, model.instruction),
      el("div.split", {},
        el("form.ask", { onsubmit: submit, "aria-label": t("fill_in") }, el("h2", {}, t("inputs")), boxes, wrong,
          el("div.row.end", {}, el("button", { type: "button", onclick: () => { kept.inputs[model.id] = {}; draw(); } }, t("clear_form")), button)),
        el("div.side", {}, el("h2", {}, t("answer")), result, model.free_text ? null : possible(model))));
  }
}

// -- the answer ------------------------------------------------------------------------------------------------------

function shown(model, answer) {
  if (model.free_text) return [el("div.text", { dir: "auto" }, answer.output), foot(answer)];
  const reasons = Object.values(answer.reasoning);
  return [
    reasons.length ? el("details.reasoning", { open: true }, el("summary", {}, t("reasoning")), reasons.map((text) => el("p", { dir: "auto" }, text))) : null,
    groups(model.fields).map(([name, fields]) => {
      const rows = fields.map((field) => fieldRow(field, name, at(answer.output, field.path), answer));
      if (!name) return el("dl.fieldset", {}, rows);
      const title = el("h3", { id: fresh("group") }, name);
      return el("section", { "aria-labelledby": title.id }, title, el("dl.fieldset", {}, rows));
    }),
    foot(answer),
    json(answer.output),
  ];
}

/** Fields under the first part of their path, where several share one. */
function groups(fields) {
  const found = new Map();
  for (const field of fields) {
    const name = field.path.includes(".") ? field.path.split(".")[0] : "";
    found.set(name, [...(found.get(name) ?? []), field]);
  }
  return [...found];
}

const at = (output, path) => (path ? path.split(".").reduce((value, key) => value?.[key], output) : output);

function fieldRow(field, group, value, answer) {
  const name = group ? field.path.slice(group.length + 1) : field.path || t("answer");
  const sure = answer.confidence[field.path];
  const said = spelt(value);
  const others = answer.probabilities[field.path] ?? [];
  return el("div.fieldrow", {},
    el("dt", {}, name),
    el("dd", {}, el("b.value", { dir: "auto" }, said), sure === undefined ? el("span.quiet", {}, t("no_confidence")) : bar(sure, percent(sure), t("confidence_of", { field: field.path, value: said, p: percent(sure) }))),
    others.length > 1 ? el("dd.others", {}, el("details", {}, el("summary", {}, t("others")),
      el("ul.labels", {}, others.slice(0, MOST_LABELS).map(({ label, probability }) => el("li", {}, el("span", {}, spelt(label)), bar(probability, percent(probability))))))) : null);
}

function spelt(value) {
  if (value === null || value === undefined) return "–";
  if (Array.isArray(value)) return value.length ? value.map(spelt).join(", ") : t("nothing_chosen");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function foot(answer) {
  const said = [t("took", { s: number(answer.latency_s, 2) })];
  if (answer.truncated) said.push(t("truncated"));
  return el("p.foot", {}, said.join(" · "));
}

function json(output) {
  const text = JSON.stringify(output, null, 2);
  const copy = el("button.small", { type: "button", onclick: async () => {
    await navigator.clipboard.writeText(text);
    fill(copy, t("copied"));
    setTimeout(() => fill(copy, t("copy")), 1500);
  } }, t("copy"));
  return el("details", {}, el("summary", {}, t("as_json")), el("div.code", {}, el("pre", { tabindex: "0" }, text), navigator.clipboard ? copy : null));
}

function possible(model) {
  return el("details.possible", {}, el("summary", {}, t("labels_possible")),
    el("dl", {}, model.fields.map((field) => el("div", {}, el("dt", {}, field.path || t("answer")),
      el("dd", {}, field.labels ? field.labels.map(String).join(" · ") : t("open_text"))))));
}
