// The chat: one question, answered by one model or by two side by side. The answer is shown while it is written.

import { stream, post, Trouble } from "./api.js";
import { el, fill, labelled, speak } from "./dom.js";
import { passages, sourceCards, supportLine, absent } from "./sources.js";
import { figure, number, t } from "./words.js";

const KINDS = ["assistant", "text", "fine-tuned", "base"];
const QUIET_AFTER_S = 3;

/** What outlives a change of view. turns: {question, answers: {choice: text}}. */
const kept = { first: null, second: null, comparing: false, turns: [], thread: null, draft: "", temperature: 0.7, longest: 300, system: "" };

export async function show(place, { tell, models }) {
  const choices = choicesOf(await models());
  const wanted = new URLSearchParams(location.hash.split("?")[1] ?? "").get("model");
  const byId = new Map(choices.map((choice) => [choice.key, choice]));
  const linked = choices.find((choice) => choice.id === wanted);
  if (linked) kept.first = linked.key;
  if (!byId.has(kept.first)) kept.first = choices[0].key;
  if (!byId.has(kept.second)) kept.second = rivalOf(byId.get(kept.first), choices).key;

  const thread = kept.thread ?? el("div.thread", { role: "log" });
  thread.setAttribute("aria-label", t("conversation"));
  kept.thread = thread;
  const empty = el("div.empty");
  const pickers = el("div.pickers");
  const composer = makeComposer(ask, stop);
  const chat = el("div.chat", {}, pickers, empty, thread, composer.node);
  fill(place, el("h1.unseen", {}, t("view_chat")), chat);
  draw();

  function chosen() {
    return [byId.get(kept.first), kept.comparing ? byId.get(kept.second) : null].filter(Boolean);
  }

  function draw() {
    const first = byId.get(kept.first);
    const both = kept.comparing;
    chat.classList.toggle("broad", both);
    const compare = el("button.toggle", { type: "button", "aria-pressed": String(both), onclick: () => {
      kept.comparing = !kept.comparing;
      kept.second = rivalOf(byId.get(kept.first), choices).key;
      draw();
    } }, both ? t("compare_end") : t("compare"));
    const anew = thread.childElementCount ? el("button", { type: "button", onclick: clear }, t("clear")) : null;
    const one = picker(choices, kept.first, (key) => { kept.first = key; draw(); });
    const two = both ? picker(choices, kept.second, (key) => { kept.second = key; draw(); }) : null;
    fill(pickers,
      el("div.pair", { class: both ? "pair two" : "pair" },
        el("div", {}, labelled(t("model"), one), el("p.hint", {}, about(first))),
        two ? el("div", {}, labelled(t("compare_with"), two), el("p.hint", {}, about(byId.get(kept.second)))) : null,
        el("div.row.acts", {}, compare, anew)),
      chosen().some(takesSettings) ? settings() : null);
    fill(empty, thread.childElementCount ? null : [
      el("h2", {}, t("chat_empty_title")),
      el("p", {}, t(first.kind === "assistant" ? "chat_empty_assistant" : "chat_empty_model"))]);
    empty.hidden = thread.childElementCount > 0;
    thread.hidden = !empty.hidden;
  }

  let running = null;

  async function ask(question) {
    tell(null);
    const asked = chosen();
    const entry = { question, answers: {} };
    const columns = asked.map((choice) => answerBox(choice));
    const item = el("div.turn", {},
      el("div.asked", {}, el("span.unseen", {}, `${t("you")}: `), question),
      el("div", { class: asked.length > 1 ? "answers two" : "answers" }, columns.map((column) => column.node)));
    thread.append(item);
    draw();
    if (item.previousElementSibling) item.scrollIntoView({ block: "start", behavior: calm() });
    running = new AbortController();
    composer.busy(true);
    const before = kept.turns.slice();
    kept.turns.push(entry);
    await Promise.all(asked.map((choice, i) => answerInto(columns[i], choice, entry, before, running.signal)));
    running = null;
    composer.busy(false);
    speak(t("answer_ready"));
  }

  function stop() {
    running?.abort();
  }

  function clear() {
    stop();
    kept.turns = [];
    thread.replaceChildren();
    draw();
    composer.focus();
  }

  if (matchMedia("(pointer: fine)").matches) composer.focus();
  return stop;
}

const calm = () => (matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth");

// -- who can be asked ------------------------------------------------------------------------------------------------

/** The server's models as choices. An assistant can be asked without its sources too, for comparison. */
function choicesOf(models) {
  const found = [];
  for (const model of models) {
    if (model.kind === "structured" || (model.kind === "text" && model.inputs.length !== 1)) continue;
    found.push({ ...model, key: `${model.kind}:${model.id}`, name: model.id });
    if (model.kind === "assistant" && model.free_text && model.inputs.length === 1) {
      found.push({ ...model, kind: "text", key: `text:${model.id}`, name: t("without_sources", { name: model.id }) });
    }
  }
  return found.sort((a, b) => KINDS.indexOf(a.kind) - KINDS.indexOf(b.kind));
}

/** Whom to compare with: the model's own base, or the best that was tuned from it. */
function rivalOf(choice, choices) {
  const others = choices.filter((other) => other.key !== choice.key);
  const bases = others.filter((other) => other.kind === "base");
  const own = bases.find((other) => other.id === choice.base || other.also.includes(choice.base));
  return (choice.kind === "base" ? others[0] : own ?? bases[0]) ?? choice;
}

function picker(choices, chosen, onchange) {
  const groups = KINDS.map((kind) => [kind, choices.filter((choice) => choice.kind === kind)]).filter(([, of]) => of.length);
  return el("select", { onchange: (event) => onchange(event.target.value) }, groups.map(([kind, of]) =>
    el("optgroup", { label: t(`group_${kind}`) }, of.map((choice) =>
      el("option", { value: choice.key, selected: choice.key === chosen }, choice.name)))));
}

function about(choice) {
  if (choice.kind === "fine-tuned") return t("about_fine-tuned", { base: choice.base });
  if (choice.kind !== "base") return t(`about_${choice.kind}`);
  if (!choice.also.length) return t("about_base_alone");
  const names = choice.also.slice(0, 2).join(", ");
  const more = choice.also.length - 2;
  return t("about_base", { names: more > 0 ? t("and_more", { names, n: more }) : names });
}

function settings() {
  const temperature = el("input", { type: "number", min: 0, max: 2, step: 0.1, value: String(kept.temperature), inputmode: "decimal", onchange: (e) => { kept.temperature = within(e.target, 0, 2, 0.7); } });
  const longest = el("input", { type: "number", min: 1, max: 100000, step: 1, value: String(kept.longest), inputmode: "numeric", onchange: (e) => { kept.longest = Math.round(within(e.target, 1, 100000, 300)); } });
  const system = el("input", { type: "text", value: kept.system, onchange: (e) => { kept.system = e.target.value; } });
  return el("details.settings", {}, el("summary", {}, t("settings")),
    el("div.fields", {},
      labelled(t("temperature"), temperature, t("temperature_hint")),
      labelled(t("longest"), longest),
      labelled(t("system"), system, t("system_hint"))));
}

/** Assistants and specialists answer as they were trained. */
const takesSettings = ({ kind }) => kind === "base" || kind === "fine-tuned";

function within(input, low, high, otherwise) {
  const value = Number(input.value);
  const good = input.value !== "" && Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : otherwise;
  input.value = String(good);
  return good;
}

// -- where questions are written -------------------------------------------------------------------------------------

function makeComposer(ask, stop) {
  const text = el("textarea", { rows: 1, value: kept.draft, placeholder: t("question_hint"), "aria-label": t("question"), enterkeyhint: "send" });
  const wrong = el("p.wrong", { role: "alert" });
  const button = el("button.primary", {}, t("ask"));
  let busy = false;
  const submit = (event) => {
    event?.preventDefault();
    if (busy) return stop();
    const question = text.value;
    if (!question.trim()) {
      fill(wrong, t("question_empty"));
      return text.focus();
    }
    fill(wrong);
    text.value = kept.draft = "";
    grow();
    return ask(question);
  };
  const grow = () => { text.style.height = "auto"; text.style.height = `${Math.min(text.scrollHeight + 2, innerHeight * 0.4)}px`; };
  text.addEventListener("input", () => { kept.draft = text.value; fill(wrong); grow(); });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && busy) stop();
    const plain = event.key === "Enter" && !event.shiftKey && !event.isComposing;
    if (plain && !busy && matchMedia("(pointer: fine)").matches) submit(event);
    else if (plain && busy) event.preventDefault();
  });
  const node = el("form.composer", { onsubmit: submit }, wrong, el("div.write", {}, text, button));
  return {
    node,
    focus: () => text.focus({ preventScroll: true }),
    busy: (now) => {
      busy = now;
      fill(button, now ? t("stop") : t("ask"));
      button.classList.toggle("stop", now);
    },
  };
}

// -- answers ---------------------------------------------------------------------------------------------------------

function answerBox(choice) {
  const text = el("div.text", { dir: "auto" });
  const waiting = el("p.waiting", {}, t(choice.kind === "assistant" ? "searching" : "thinking"));
  const behind = el("div.behind");
  const foot = el("p.foot");
  const node = el("article.answer", { "aria-label": t("answer_of", { model: choice.name }), "aria-busy": "true" },
    el("header", {}, el("b", {}, choice.name), el("span.kind", {}, t(`kind_${choice.kind}`))), waiting, text, behind, foot);
  return { node, text, waiting, behind, foot };
}

async function answerInto(box, choice, entry, before, signal) {
  const began = performance.now();
  const how = { assistant: askAssistant, text: askSpecialist }[choice.kind] ?? askModel;
  const notes = [];
  try {
    notes.push(...await how(box, choice, entry, before, signal));
  } catch (error) {
    const stopped = error instanceof Trouble && error.kind === "stopped";
    if (stopped) notes.push(t("answer_stopped"));
    else box.behind.append(el("p.wrong", { role: "alert" }, error instanceof Trouble ? error.message : t("page_bug")));
    if (!(error instanceof Trouble)) console.error(error);
  }
  box.waiting.remove();
  box.node.classList.add("done");
  box.node.setAttribute("aria-busy", "false");
  fill(box.foot, [t("took", { s: tenths((performance.now() - began) / 1000) }), ...notes].join(" · "));
}

const tenths = (seconds) => (seconds < 0.1 ? `< ${number(0.1, 1)}` : number(seconds, 1));

/** Put text behind what is there; what the reader looks at does not move. */
function write(box, text) {
  box.waiting.remove();
  box.text.append(text);
}

async function askModel(box, choice, entry, before, signal) {
  const messages = kept.system.trim() ? [{ role: "system", content: kept.system }] : [];
  for (const turn of before) {
    if (turn.answers[choice.key]) messages.push({ role: "user", content: turn.question }, { role: "assistant", content: turn.answers[choice.key] });
  }
  messages.push({ role: "user", content: entry.question });
  const body = { model: choice.id, messages, stream: true, temperature: kept.temperature, max_completion_tokens: kept.longest, stream_options: { include_usage: true } };
  const notes = [];
  let written = "";
  for await (const { data } of stream("/v1/chat/completions", body, signal)) {
    const piece = data?.choices[0]?.delta?.content;
    if (piece) {
      write(box, piece);
      written += piece;
      entry.answers[choice.key] = written;
    }
    if (data?.choices[0]?.finish_reason === "length") notes.push(t("answer_cut", { n: number(kept.longest) }));
    if (data?.usage) notes.push(t("tokens", { n: number(data.usage.completion_tokens) }));
  }
  if (!written.trim()) box.behind.append(el("p.quiet", {}, t("answer_empty")));
  return notes;
}

async function askSpecialist(box, choice, entry, _, signal) {
  const body = { model: choice.id, inputs: { [choice.inputs[0]]: entry.question } };
  const found = await post("/afina/api/predict", body, signal);
  const text = typeof found.output === "string" ? found.output : JSON.stringify(found.output, null, 1);
  if (text.trim()) write(box, text);
  else box.behind.append(el("p.quiet", {}, t("answer_empty")));
  return [t("tokens", { n: number(found.usage.completion_tokens) }), ...(found.truncated ? [t("truncated")] : [])];
}

async function askAssistant(box, choice, entry, _, signal) {
  const notes = [];
  const slow = setTimeout(() => fill(box.waiting, t("thinking")), QUIET_AFTER_S * 1000);
  try {
    for await (const { event, data } of stream("/afina/api/ask", { model: choice.id, question: entry.question }, signal)) {
      if (event === "passages") fill(box.waiting, t("reading", { n: number(data.passages.length) }));
      else if (event === "delta") write(box, data.text);
      else if (event === "done") finish(box, data, notes);
    }
  } finally {
    clearTimeout(slow);
  }
  return notes;
}

function finish(box, answer, notes) {
  box.waiting.remove();
  fill(box.text, answer.refused ? null : answer.text);
  fill(box.behind,
    answer.note ? el("p.quiet", {}, answer.note) : null,
    answer.refused ? absent(answer.text) : sourceCards(answer.sources, answer.passages),
    answer.passages.length ? passages(answer.passages, answer.sources) : null,
    supportLine(answer.support));
  if (answer.usage.completion_tokens) notes.push(t("tokens", { n: figure(answer.usage.completion_tokens) }));
}
