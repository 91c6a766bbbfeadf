// The frame: language, key, views. Each view is a module with `show(place, context)`, which may give back `leave()`.

import { get, hasKey, setKey, state, takeKeyFromAddress, Trouble } from "./api.js";
import { el, fill, labelled } from "./dom.js";
import { language, languages, setLanguage, t, tag } from "./words.js";
import * as chat from "./chat.js";
import * as form from "./form.js";
import * as jobs from "./jobs.js";
import * as reports from "./reports.js";

const VIEWS = { chat, form, jobs, reports };
const main = document.getElementById("main");
const notice = document.getElementById("notice");
let leave = null;
let turn = 0;

/** What every view gets. tell: one line of trouble above the view; null takes it away. */
const context = { tell, models };

function tell(trouble) {
  if (trouble instanceof Trouble && (trouble.kind === "stopped" || trouble.kind === "key")) return;
  notice.hidden = !trouble;
  fill(notice, trouble ? (trouble instanceof Trouble ? trouble.message : t("page_bug")) : null);
  if (trouble && !(trouble instanceof Trouble)) console.error(trouble);
}

/** Everybody who can be asked; read anew for each view, since jobs make new ones. */
async function models() {
  return (await get("/afina/api/models")).data;
}

function frame() {
  document.documentElement.lang = tag();
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = t(node.dataset.word);
  for (const node of document.querySelectorAll("[data-word-label]")) node.setAttribute("aria-label", t(node.dataset.wordLabel));
  const here = current();
  fill(document.getElementById("views"), Object.keys(VIEWS).map((name) =>
    el("a", { href: `#/${name}`, "aria-current": name === here ? "page" : null }, t(`view_${name}`))));
  fill(document.getElementById("languages"), Object.entries(languages).map(([code, name]) =>
    el("button", { type: "button", lang: code, title: name, "aria-label": `${code.toUpperCase()}, ${name}`, "aria-pressed": String(code === language()), onclick: () => { setLanguage(code); show(); } }, code.toUpperCase())));
  document.title = `${t(`view_${here}`)} · Afina`;
}

function current() {
  const name = location.hash.replace(/^#\//, "").split("/")[0];
  return name in VIEWS ? name : "chat";
}

async function show({ focus = false } = {}) {
  const mine = ++turn;
  leave?.();
  leave = null;
  tell(null);
  frame();
  if (!hasKey()) return askForKey();
  const place = el("div.view", { "data-view": current() });
  fill(main, place);
  if (focus) main.focus({ preventScroll: true });
  scrollTo(0, 0);
  try {
    const left = await VIEWS[current()].show(place, context);
    if (mine === turn) leave = left ?? null;
    else left?.();
  } catch (error) {
    if (mine === turn) tell(error);
  }
}

function askForKey(refused = false) {
  const input = el("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true, minlength: 8, maxlength: 200 });
  const gate = el("form.gate", {
    onsubmit: (event) => { event.preventDefault(); setKey(input.value.trim()); show(); },
  },
    el("h1", {}, t("key_title")),
    el("p", {}, t("key_about")),
    refused ? el("p.wrong", { role: "alert" }, t("key_refused")) : null,
    labelled(t("key_label"), input, null),
    el("button.primary", {}, t("key_go")),
    el("p.hint", {}, t("key_hint"), " ", el("code", {}, "afina keys create page")));
  fill(main, gate);
  input.focus();
}

state.onKeyRefused = () => {
  turn++;
  leave?.();
  leave = null;
  tell(null);
  askForKey(true);
};

addEventListener("hashchange", () => { takeKeyFromAddress(); show({ focus: true }); });
addEventListener("unhandledrejection", (event) => { event.preventDefault(); tell(event.reason); });
takeKeyFromAddress();
show();
