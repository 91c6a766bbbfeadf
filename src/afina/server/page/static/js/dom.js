// Elements made from data. Text goes in as text nodes and attributes as attributes: nothing here reads markup, so what
// a user, a product or a model wrote cannot become any. (The page's policy would refuse it besides.)

const SVG = "http://www.w3.org/2000/svg";

/** el("p.note", {id: "x"}, "text", node, null): an element. A function is a listener: {onclick: fn}. */
export function el(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  return filled(document.createElement(tag || "div"), classes, attributes, children);
}

/** The same for SVG. */
export function svg(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  return filled(document.createElementNS(SVG, tag), classes, attributes, children);
}

function filled(node, classes, attributes, children) {
  if (classes.length) node.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(key.slice(2), value);
    else if (key in PROPERTIES) node[key] = value;
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  add(node, children);
  return node;
}

const PROPERTIES = { value: 1, checked: 1, indeterminate: 1 };

export function add(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
}

/** The node with these children and no others. */
export function fill(node, ...children) {
  node.replaceChildren();
  add(node, children);
  return node;
}

let ids = 0;
export const fresh = (stem) => `${stem}-${++ids}`;

/** A label above its control. */
export function labelled(text, control, hint = null) {
  if (!control.id) control.id = fresh("field");
  const about = hint ? el("p.hint", { id: `${control.id}-hint` }, hint) : null;
  if (about) control.setAttribute("aria-describedby", about.id);
  return el(".field", {}, el("label", { for: control.id }, text), control, about);
}

/** A share from 0 to 1 as a bar, with its number. said: what a screen reader says of it; null where the text around does. */
export function bar(share, shown, said = null) {
  const filled = el("span.filled");
  filled.style.inlineSize = `${Math.min(100, Math.max(0, share * 100))}%`;
  return el("span.sure", said ? { role: "img", "aria-label": said } : {}, el("span.track", {}, filled), el("span.number", {}, shown));
}

/** What a screen reader says, politely. The same text twice is said twice. */
export function speak(text) {
  const place = document.getElementById("spoken");
  place.textContent = "";
  setTimeout(() => { place.textContent = text; }, 30);
}

/** A question with two answers, in a dialog. Resolves to true or false. */
export function confirmed(question, detail, yes, no) {
  const title = el("h2", { id: fresh("dialog") }, question);
  const dialog = el("dialog", { "aria-labelledby": title.id },
    el("form", { method: "dialog" }, title, el("p", {}, detail),
      el(".row.end", {}, el("button", { value: "no", autofocus: true }, no), el("button.primary", { value: "yes" }, yes))));
  document.body.append(dialog);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => { dialog.remove(); resolve(dialog.returnValue === "yes"); });
    dialog.showModal();
  });
}
