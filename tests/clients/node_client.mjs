// The official npm package: files, a job, chat, a stream, a structured answer, errors.
import OpenAI, { toFile } from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI();
const base = "gpt-4o-mini-2024-07-18";
let checks = 0;
function check(holds, what) {
  if (!holds) {
    console.error(`FAILED: ${what}`);
    process.exit(1);
  }
  checks += 1;
}
const sentences = ["Exports grew.", "Prices fell.", "Wages rose.", "The bridge fell.", "Jobs were lost.", "Debt rose."];
const rows = [...sentences, ...sentences].map((text, n) => ({
  messages: [
    { role: "user", content: `${n} ${text}` },
    { role: "assistant", content: text.includes("lost") || text.includes("Debt") ? "bad" : "good" },
  ],
}));
const data = Buffer.from(rows.map((row) => JSON.stringify(row)).join("\n"));

const file = await client.files.create({ file: await toFile(data, "treino ção.jsonl"), purpose: "fine-tune" });
check(file.filename === "treino ção.jsonl", `file name ${file.filename}`);
check(Buffer.from(await (await client.files.content(file.id)).arrayBuffer()).equals(data), "content");
let job = await client.fineTuning.jobs.create({
  model: base,
  training_file: file.id,
  method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 1, batch_size: 4 } } },
});
while (!["succeeded", "failed", "cancelled"].includes(job.status)) {
  await new Promise((resolve) => setTimeout(resolve, 500));
  job = await client.fineTuning.jobs.retrieve(job.id);
}
check(job.status === "succeeded", JSON.stringify(job.error));
const events = [];
for await (const event of client.fineTuning.jobs.listEvents(job.id, { limit: 2 })) events.push(event.message);
check(events.at(-1) === `Created fine-tuning job: ${job.id}`, "paging through events");
check(new Set(events).size === events.length, "no event twice");
const model = job.fine_tuned_model;
check((await client.models.retrieve(model)).id === model, "retrieve a model");
const messages = [{ role: "user", content: "Wages rose." }];
const chat = await client.chat.completions.create({ model, messages, max_tokens: 8, temperature: 0 });
check(chat.usage.completion_tokens <= 8, "chat");
let text = "";
const stream = await client.chat.completions.create({ model, messages, max_tokens: 8, temperature: 0, stream: true });
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
check(text === chat.choices[0].message.content, "stream = whole");
const Label = z.object({ label: z.enum(["good", "bad"]), sure: z.boolean() });
const parsed = await client.chat.completions.parse({
  model,
  messages,
  response_format: zodResponseFormat(Label, "label"),
});
check(["good", "bad"].includes(parsed.choices[0].message.parsed.label), "parse");
check((await client.embeddings.create({ model: base, input: "uma frase" })).data[0].embedding.length > 8, "embeddings");
try {
  await client.files.retrieve("file-absent");
  check(false, "an unknown file is an error");
} catch (error) {
  check(error instanceof OpenAI.NotFoundError && error.requestID, "an error's class and request id");
}
console.log(`checks: ${checks}`);
