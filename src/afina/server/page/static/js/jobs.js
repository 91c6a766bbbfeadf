// Fine-tuning jobs: the list, one of them with its progress and its live loss curve, and the changes a client may ask
// for, each confirmed first.

import { get, post, Trouble } from "./api.js";
import { confirmed, el, fill, speak } from "./dom.js";
import { lossFigure } from "./curve.js";
import { duration, instant, moment, number, t } from "./words.js";

const JOBS = "/v1/fine_tuning/jobs";
const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const EVERY_MS = 1500;
const IDLE_MS = 6000;
const PAGE = 50;
const EVENTS = 500;
const SHOWN_EVENTS = 30;
const MARKS = { validating_files: "…", queued: "…", running: "▶", paused: "❚❚", succeeded: "✓", failed: "✕", cancelled: "–" };

export async function show(place, { tell }) {
  const list = el("ul.joblist", { "aria-label": t("job_list") });
  const detail = el("section.job");
  const older = el("button.small", { type: "button", onclick: () => { limit += PAGE; refresh(); } }, t("more_jobs"));
  let limit = PAGE;
  let chosen = decodeURIComponent(location.hash.split("/")[2] ?? "") || null;
  let panel = null;
  let open = true;
  let timer = null;
  let jobs = [];
  let drawn = "";

  async function refresh() {
    clearTimeout(timer);
    if (!open) return;
    try {
      const page = await get(`${JOBS}?limit=${limit}`);
      if (!open) return;
      jobs = page.data;
      older.hidden = !page.has_more;
      if (!jobs.length) empty();
      else await filled();
      tell(null);
    } catch (error) {
      if (open) tell(error);
    }
    const live = jobs.some((job) => !ENDED.has(job.status));
    if (open) timer = setTimeout(refresh, live && !document.hidden ? EVERY_MS : IDLE_MS);
  }

  function empty() {
    fill(place, el("h1", {}, t("view_jobs")), el("div.empty", {}, el("h2", {}, t("jobs_empty_title")), el("p", {}, t("jobs_empty")),
      el("pre", { tabindex: "0" }, 'file = client.files.create(file=open("train.jsonl", "rb"), purpose="fine-tune")\nclient.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=file.id)')));
  }

  async function filled() {
    if (!list.isConnected) fill(place, el("h1", {}, t("view_jobs")), el("div.split.jobs", {}, el("div", {}, list, older), detail));
    if (!jobs.some((job) => job.id === chosen)) chosen = jobs[0].id;
    drawList();
    const job = jobs.find((one) => one.id === chosen);
    if (panel?.id !== chosen) {
      panel?.close();
      panel = jobPanel(job.id, { tell, refresh });
      fill(detail, panel.node);
    }
    await panel.update(job);
  }

  /** Drawn again only where something changed, so that focus stays where it is. */
  function drawList() {
    const now = JSON.stringify([chosen, jobs.map((job) => [job.id, job.status])]);
    if (now === drawn) return;
    drawn = now;
    const focused = list.contains(document.activeElement);
    fill(list, jobs.map((job) => el("li", {},
      el("button.jobitem", { type: "button", "aria-current": job.id === chosen ? "true" : null, onclick: () => { chosen = job.id; refresh(); } },
        el("span.name", {}, job.user_provided_suffix || job.model), chip(job.status), el("span.when", {}, moment(job.created_at))))));
    if (focused) list.querySelector("[aria-current]")?.focus();
  }

  fill(place, el("h1", {}, t("view_jobs")), el("p.waiting", {}, t("loading")));
  await refresh();
  return () => { open = false; clearTimeout(timer); panel?.close(); };
}

function chip(status) {
  return el(`span.chip.${status}`, {}, el("span", { "aria-hidden": "true" }, `${MARKS[status] ?? ""} `), t(`status_${status}`));
}

// -- one job ---------------------------------------------------------------------------------------------------------

function jobPanel(id, { tell, refresh }) {
  const head = el("div.jobhead");
  const progress = el("div.progress");
  const facts = el("dl.facts");
  const told = el("ol.events");
  const figure = lossFigure();
  const node = el("div", {}, head, progress, figure.node, facts, el("details", { open: true }, el("summary", {}, t("events")), told));
  const events = new Map();
  let complete = false;
  let status = null;

  /** Events that are not known yet. They come newest first, and are kept oldest first. */
  async function readEvents() {
    const fresh = [];
    let after = null;
    while (true) {
      const page = await get(`${JOBS}/${id}/events?limit=${EVENTS}${after ? `&after=${after}` : ""}`);
      const unknown = page.data.filter((event) => !events.has(event.id));
      fresh.push(...unknown);
      if (!page.has_more || unknown.length < page.data.length) break;
      after = page.data.at(-1).id;
    }
    for (const event of fresh.reverse()) events.set(event.id, event);
    complete = true;
  }

  async function update(job) {
    if (ENDED.has(status) && job.status === status && complete) return;
    await readEvents();
    const inOrder = [...events.values()];
    const points = pointsOf(inOrder);
    const total = Math.max(0, ...inOrder.map((event) => event.data?.total_steps ?? 0)) || null;
    if (status !== null && status !== job.status) speak(t(`status_${job.status}`));
    if (status !== job.status) drawHead(job);
    status = job.status;
    drawProgress(job, points.at(-1)?.step ?? 0, total);
    figure.draw(points, total);
    drawFacts(job);
    drawEvents(inOrder);
  }

  function drawHead(job) {
    const may = { pause: ["queued", "running"], resume: ["paused"], cancel: ["validating_files", "queued", "running", "paused"] };
    const buttons = Object.keys(may).filter((what) => may[what].includes(job.status)).map((what) =>
      el("button", { type: "button", class: what === "cancel" ? "danger" : null, onclick: () => change(what) }, t(what)));
    fill(head, el("div", {}, el("h2", {}, job.user_provided_suffix || job.model), el("p.quiet", {}, el("code", {}, job.id))),
      el("div.row", {}, chip(job.status), buttons));
  }

  async function change(what) {
    if (!(await confirmed(t(`${what}_sure`), t(`${what}_detail`), t(`${what}_yes`), t("keep")))) return;
    try {
      await post(`${JOBS}/${id}/${what}`, undefined);
      await refresh();
    } catch (error) {
      tell(error instanceof Trouble ? error : new Trouble("refused", t("page_bug")));
    }
  }

  function drawProgress(job, step, total) {
    const bar = el("progress", { max: total ?? 1, "aria-label": t("progress") });
    bar.value = job.status === "succeeded" ? (total ?? 1) : step;
    const said = [total ? t("step_of", { step: number(step), total: number(total) }) : t("no_step")];
    const left = job.estimated_finish ? job.estimated_finish - Date.now() / 1000 : 0;
    if (job.status === "running" && left > 0) said.push(t("left", { time: duration(left) }));
    fill(progress, bar, el("p", {}, said.join(" · ")), job.error?.message ? el("p.wrong", {}, job.error.message) : null,
      job.fine_tuned_model ? el("p.made", {}, el("code", {}, job.fine_tuned_model), " ", el("a.button", { href: `#/chat?model=${encodeURIComponent(job.fine_tuned_model)}` }, t("try_model"))) : null);
  }

  function drawFacts(job) {
    const chosen = job.method[job.method.type].hyperparameters;
    const shown = [
      ["base_model", job.model], ["method", job.method.type], ["epochs", spelt(chosen.n_epochs)], ["batch_size", spelt(chosen.batch_size)],
      ["rate", spelt(chosen.learning_rate_multiplier)], ["trained_tokens", job.trained_tokens === null ? null : number(job.trained_tokens)],
      ["created", moment(job.created_at)], ["finished", job.finished_at ? moment(job.finished_at) : null],
    ];
    fill(facts, shown.filter(([, value]) => value !== null).map(([name, value]) => el("div", {}, el("dt", {}, t(name)), el("dd", {}, value))));
  }

  function drawEvents(inOrder) {
    const messages = inOrder.filter((event) => event.type !== "metrics").slice(-SHOWN_EVENTS).reverse();
    fill(told, messages.map((event) => el("li", { class: event.level }, el("time", { datetime: new Date(event.created_at * 1000).toISOString() }, instant(event.created_at)), el("span", {}, event.message))));
  }

  return { id, node, update, close: figure.close };
}

const spelt = (value) => (value === "auto" ? t("auto") : typeof value === "number" ? String(value) : String(value ?? "–"));

/** One point a step, in order; what came later about a step (after a restart) stands. */
function pointsOf(events) {
  const found = new Map();
  for (const { type, data } of events) {
    if (type !== "metrics" || !Number.isFinite(data?.step)) continue;
    const before = found.get(data.step) ?? {};
    found.set(data.step, { step: data.step, train: data.train_loss ?? before.train ?? null, valid: data.full_valid_loss ?? data.valid_loss ?? before.valid ?? null });
  }
  return [...found.values()].sort((a, b) => a.step - b.step);
}
