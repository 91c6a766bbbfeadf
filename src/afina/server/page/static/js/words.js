// Every text of the page in English and Brazilian Portuguese, and numbers and times as each writes them. Names that come
// from the server (models, fields, labels, titles) are never translated.

export const languages = { en: "English", pt: "Português (Brasil)" };
const TAGS = { en: "en", pt: "pt-BR" };
const KEPT = "afina.language";

// key: [English, Brazilian Portuguese]
const WORDS = {
  skip: ["Skip to the content", "Pular para o conteúdo"],
  views: ["Views", "Telas"],
  language: ["Language", "Idioma"],
  view_chat: ["Chat", "Conversa"],
  view_form: ["Form", "Formulário"],
  view_jobs: ["Jobs", "Treinos"],
  view_reports: ["Reports", "Relatórios"],
  again: ["Try again", "Tentar de novo"],
  copy: ["Copy", "Copiar"],
  copied: ["Copied", "Copiado"],
  loading: ["Loading…", "Carregando…"],

  // the key, and trouble
  key_title: ["Your API key", "Sua chave de API"],
  key_about: [
    "The page asks the server in your name. The key stays in this tab and is forgotten when you close it.",
    "A página fala com o servidor em seu nome. A chave fica só nesta aba e é esquecida quando você a fecha.",
  ],
  key_label: ["API key", "Chave de API"],
  key_go: ["Open", "Abrir"],
  key_hint: ["No key at hand? On the server:", "Sem chave à mão? No servidor:"],
  key_refused: ["The server does not accept this key. Check it, or make another.", "O servidor não aceita esta chave. Confira, ou crie outra."],
  lost: ["The server does not answer. Check that `afina serve` is running, then try again.", "O servidor não responde. Veja se o `afina serve` está rodando e tente de novo."],
  too_many: ["Too many requests for this key.", "Pedidos demais para esta chave."],
  again_in: ["Try again in {s} s.", "Tente de novo em {s} s."],
  busy: ["The server is busy just now.", "O servidor está ocupado agora."],
  failed: ["The server refused with status {status} and gave no reason.", "O servidor recusou com o status {status} e não disse por quê."],
  stopped: ["Stopped.", "Interrompido."],
  page_bug: ["Something went wrong in the page. Reload it.", "Algo deu errado na página. Recarregue."],

  // chat
  model: ["Model", "Modelo"],
  compare: ["Compare", "Comparar"],
  compare_with: ["Compared with", "Comparado com"],
  compare_end: ["End comparison", "Encerrar comparação"],
  group_assistant: ["Assistants: answers with sources", "Assistentes: respostas com fontes"],
  group_text: ["Specialists", "Especialistas"],
  "group_fine-tuned": ["Fine-tuned models", "Modelos ajustados"],
  group_base: ["Base models", "Modelos base"],
  kind_assistant: ["assistant", "assistente"],
  kind_text: ["specialist", "especialista"],
  "kind_fine-tuned": ["fine-tuned", "ajustado"],
  kind_base: ["base", "base"],
  kind_structured: ["specialist", "especialista"],
  without_sources: ["{name}, without sources", "{name}, sem fontes"],
  about_assistant: ["Answers from the passages of its catalogue and shows them. Each question stands by itself.", "Responde com trechos do catálogo e mostra quais. Cada pergunta vale por si."],
  about_text: ["A specialist tuned to write from one text. Each question stands by itself.", "Um especialista ajustado para escrever a partir de um texto. Cada pergunta vale por si."],
  "about_fine-tuned": ["Tuned from {base}.", "Ajustado a partir de {base}."],
  about_base: ["Not tuned. Other names: {names}.", "Sem ajuste. Outros nomes: {names}."],
  about_base_alone: ["Not tuned.", "Sem ajuste."],
  and_more: ["{names} and {n} more", "{names} e mais {n}"],
  settings: ["Settings", "Opções"],
  temperature: ["Temperature (0 to 2)", "Temperatura (0 a 2)"],
  temperature_hint: ["0: always the likeliest word.", "0: sempre a palavra mais provável."],
  longest: ["Longest answer (tokens)", "Resposta mais longa (tokens)"],
  system: ["System message", "Mensagem de sistema"],
  system_hint: ["For chat models; empty: none.", "Para modelos de conversa; vazia: nenhuma."],
  question: ["Your question", "Sua pergunta"],
  question_hint: ["Ask something…", "Pergunte algo…"],
  ask: ["Ask", "Perguntar"],
  stop: ["Stop", "Parar"],
  clear: ["New conversation", "Nova conversa"],
  question_empty: ["Write a question first.", "Escreva antes uma pergunta."],
  chat_empty_title: ["Ask something", "Pergunte algo"],
  chat_empty_assistant: ["The answer comes with its sources: open one and the sentence used is marked in its passage.", "A resposta vem com as fontes: abra uma e a frase usada aparece marcada no trecho."],
  chat_empty_model: ["The answer appears while the model writes it. Two models can be compared side by side.", "A resposta aparece enquanto o modelo escreve. Dá para comparar dois modelos lado a lado."],
  conversation: ["Conversation", "Conversa"],
  you: ["You", "Você"],
  answer_of: ["Answer of {model}", "Resposta de {model}"],
  thinking: ["Waiting for the first word…", "Esperando a primeira palavra…"],
  searching: ["Searching the catalogue…", "Buscando no catálogo…"],
  reading: ["Reading {n} passages…", "Lendo {n} trechos…"],
  answer_ready: ["The answer is complete.", "A resposta está completa."],
  answer_empty: ["The model ended without writing anything.", "O modelo terminou sem escrever nada."],
  answer_cut: ["cut at {n} tokens", "cortada em {n} tokens"],
  answer_stopped: ["stopped", "interrompida"],
  took: ["{s} s", "{s} s"],
  tokens: ["{n} tokens", "{n} tokens"],
  sources: ["Sources", "Fontes"],
  source_open: ["Source {n}", "Fonte {n}"],
  score: ["score {x}", "pontuação {x}"],
  found: ["Found ({n})", "Encontrados ({n})"],
  also_found: ["Found too, not cited ({n})", "Também encontrados, não citados ({n})"],
  support: ["Support", "Suporte"],
  support_about: ["How well what was found fits the question, from 0 to 1.", "Quanto o que foi encontrado combina com a pergunta, de 0 a 1."],
  absent_title: ["Not in the catalogue", "Não está no catálogo"],
  absent_about: ["Nothing that was found supports an answer, so none is given.", "Nada do que foi encontrado sustenta uma resposta, então nenhuma é dada."],
  no_sources: ["This answer cites no source.", "Esta resposta não cita fonte."],
  quote_gone: ["The cited sentence: “{quote}”", "A frase citada: “{quote}”"],

  // form
  form_empty_title: ["No specialist here yet", "Nenhum especialista ainda"],
  form_empty: ["Start the server with run folders, and each becomes a form:", "Inicie o servidor com pastas de treinos, e cada uma vira um formulário:"],
  specialist: ["Specialist", "Especialista"],
  fill_in: ["Fill in", "Preencher"],
  inputs: ["Inputs", "Entradas"],
  answer: ["Answer", "Resposta"],
  form_go: ["Answer", "Responder"],
  form_asking: ["Answering…", "Respondendo…"],
  form_blank: ["Fill in at least one text.", "Preencha ao menos um texto."],
  form_waiting: ["The answer appears here: each field with how sure the model is.", "A resposta aparece aqui: cada campo com a certeza do modelo."],
  confidence: ["confidence", "confiança"],
  confidence_of: ["{field}: {value}, confidence {p}", "{field}: {value}, confiança {p}"],
  no_confidence: ["no confidence: open text", "sem confiança: texto livre"],
  nothing_chosen: ["nothing", "nada"],
  others: ["All labels", "Todos os rótulos"],
  reasoning: ["Reasoning", "Raciocínio"],
  as_json: ["As JSON", "Em JSON"],
  truncated: ["The texts were longer than the model reads, and were cut.", "Os textos eram mais longos do que o modelo lê e foram cortados."],
  labels_possible: ["What it answers", "O que responde"],
  open_text: ["text", "texto"],
  clear_form: ["Clear", "Limpar"],

  // jobs
  jobs_empty_title: ["No fine-tuning jobs yet", "Nenhum treino ainda"],
  jobs_empty: ["Create one with OpenAI's client, and watch it here:", "Crie um com o cliente da OpenAI e acompanhe aqui:"],
  job_list: ["Jobs, the newest first", "Treinos, do mais novo ao mais antigo"],
  status_validating_files: ["checking files", "conferindo arquivos"],
  status_queued: ["queued", "na fila"],
  status_running: ["running", "treinando"],
  status_paused: ["paused", "pausado"],
  status_succeeded: ["succeeded", "concluído"],
  status_failed: ["failed", "falhou"],
  status_cancelled: ["cancelled", "cancelado"],
  pause: ["Pause", "Pausar"],
  resume: ["Resume", "Retomar"],
  cancel: ["Cancel", "Cancelar"],
  keep: ["Leave it", "Deixar como está"],
  pause_sure: ["Pause this job?", "Pausar este treino?"],
  pause_detail: ["Its work is saved at the next step; it can be resumed at any time.", "O trabalho é salvo no próximo passo; dá para retomar quando quiser."],
  cancel_sure: ["Cancel this job?", "Cancelar este treino?"],
  cancel_detail: ["It ends now and cannot be resumed. Checkpoints already made stay usable.", "Ele termina agora e não pode ser retomado. Os checkpoints já feitos continuam valendo."],
  resume_sure: ["Resume this job?", "Retomar este treino?"],
  resume_detail: ["It goes on from the step where it was saved.", "Ele segue do passo em que foi salvo."],
  cancel_yes: ["Cancel the job", "Cancelar o treino"],
  pause_yes: ["Pause the job", "Pausar o treino"],
  resume_yes: ["Resume the job", "Retomar o treino"],
  progress: ["Progress", "Progresso"],
  step_of: ["step {step} of {total}", "passo {step} de {total}"],
  no_step: ["no step yet", "nenhum passo ainda"],
  left: ["about {time} left", "faltam cerca de {time}"],
  base_model: ["Base", "Base"],
  method: ["Method", "Método"],
  epochs: ["Epochs", "Épocas"],
  batch_size: ["Batch size", "Tamanho do lote"],
  rate: ["Learning rate multiplier", "Multiplicador da taxa"],
  trained_tokens: ["Trained tokens", "Tokens treinados"],
  created: ["Created", "Criado"],
  finished: ["Finished", "Terminado"],
  result: ["Model", "Modelo"],
  try_model: ["Ask it", "Conversar com ele"],
  loss_title: ["Loss while training", "Perda durante o treino"],
  loss_axis: ["loss (nats per token)", "perda (nats por token)"],
  step_axis: ["step (optimizer updates)", "passo (atualizações do otimizador)"],
  train_loss: ["training", "treino"],
  train_mean: ["training, smoothed", "treino, suavizada"],
  valid_loss: ["validation", "validação"],
  loss_none: ["The curve begins with the first step.", "A curva começa com o primeiro passo."],
  loss_said: ["Loss over {n} steps: training from {a} to {b}.", "Perda em {n} passos: treino de {a} a {b}."],
  loss_said_valid: ["Validation, last: {v}.", "Validação, última: {v}."],
  at_step: ["step {step}", "passo {step}"],
  numbers: ["The numbers", "Os números"],
  step: ["step", "passo"],
  events: ["Events", "Eventos"],
  checkpoint: ["Checkpoints", "Checkpoints"],
  auto: ["auto", "auto"],
  more_jobs: ["Older jobs", "Treinos mais antigos"],
  live: ["live", "ao vivo"],

  // reports
  reports_empty_title: ["No run here yet", "Nenhum treino de receita ainda"],
  reports_empty: ["Start the server with run folders, and their reports open here:", "Inicie o servidor com pastas de treinos, e os relatórios abrem aqui:"],
  run_list: ["Runs of this server", "Treinos deste servidor"],
  report_of: ["Report of {name}", "Relatório de {name}"],
  no_report: ["no report yet", "sem relatório ainda"],
  write_report: ["Write it with:", "Escreva com:"],
  open_alone: ["Open in a tab of its own", "Abrir em outra aba"],
  test_items: ["{n} test items", "{n} itens de teste"],
  exact_match: ["exact match", "acerto exato"],
  back: ["All runs", "Todos os treinos"],
};

let chosen = first();

function first() {
  const kept = remembered();
  if (kept in languages) return kept;
  for (const tag of navigator.languages ?? [navigator.language]) {
    const code = tag.toLowerCase().slice(0, 2);
    if (code in languages) return code;
  }
  return "en";
}

function remembered() {
  try {
    return localStorage.getItem(KEPT);
  } catch {
    return null; // a browser that keeps nothing
  }
}

export const language = () => chosen;
export const tag = () => TAGS[chosen];

export function setLanguage(code) {
  chosen = code;
  try {
    localStorage.setItem(KEPT, code);
  } catch {
    // for this visit only, then
  }
}

/** A text in the reader's language. values: what stands for {name} in it. */
export function t(key, values = {}) {
  const found = WORDS[key];
  if (!found) throw new Error(`no word ${key}`);
  return found[chosen === "pt" ? 1 : 0].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

export function number(value, digits = 0) {
  return new Intl.NumberFormat(TAGS[chosen], { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
}

/** Three significant digits, as a loss needs; a tiny one with its power of ten. */
export function figure(value) {
  const said = (one) => new Intl.NumberFormat(TAGS[chosen], { maximumSignificantDigits: 3 }).format(one);
  if (value === 0 || Math.abs(value) >= 0.001) return said(value);
  const power = Math.floor(Math.log10(Math.abs(value)));
  return `${said(value / 10 ** power)} × 10⁻${String(-power).replace(/\d/g, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit])}`;
}

/** A probability. What is nearly certain is not said to be certain. */
export function percent(value) {
  const said = (share) => new Intl.NumberFormat(TAGS[chosen], { style: "percent", maximumFractionDigits: 1 }).format(share);
  if (value < 1 && value >= 0.9995) return `> ${said(0.999)}`;
  return value > 0 && value < 0.0005 ? `< ${said(0.001)}` : said(value);
}

export function moment(unix_or_iso) {
  const day = /^\d{4}-\d\d-\d\d$/.test(unix_or_iso); // a date alone is of no time zone
  const when = typeof unix_or_iso === "number" ? new Date(unix_or_iso * 1000) : new Date(day ? `${unix_or_iso}T00:00` : unix_or_iso);
  const shown = { dateStyle: "medium", timeStyle: day ? undefined : "short" };
  return Number.isNaN(when.getTime()) ? "" : new Intl.DateTimeFormat(TAGS[chosen], shown).format(when);
}

/** To the second, as events are told. */
export const instant = (unix) => new Intl.DateTimeFormat(TAGS[chosen], { dateStyle: "short", timeStyle: "medium" }).format(new Date(unix * 1000));

export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}
