"use strict";

// The server's own fields (return_speculation) tell of every token where it came from; nothing here is fetched from
// anywhere else, and text from the model only ever becomes text nodes.

const element = (id) => document.getElementById(id);
const CLASSES = { cache: "foreseen", draft: "drafted", ngram: "copied" };
let model = null;
let running = null;
let conversation = [];

function fresh() {
  return { started: performance.now(), first: null, tokens: 0, accepted: 0, rejected: 0, rounds: 0, drafted: 0, hits: 0 };
}

function show(figures) {
  const judged = figures.accepted + figures.rejected;
  const seconds = (performance.now() - (figures.first ?? figures.started)) / 1000;
  const percent = (part, whole) => (whole ? Math.round((100 * part) / whole) + " %" : "–");
  element("speed").textContent = figures.tokens > 1 && seconds > 0 ? ((figures.tokens - 1) / seconds).toFixed(1) : "–";
  element("acceptance").textContent = percent(figures.accepted, judged);
  element("hits").textContent = percent(figures.hits, figures.drafted);
  element("round").textContent = figures.rounds ? (figures.tokens / figures.rounds).toFixed(2) : "–";
  element("tokens").textContent = figures.tokens;
}

function add(parent, kind, name, text) {
  const made = document.createElement(kind);
  made.className = name;
  made.textContent = text;
  parent.append(made);
  return made;
}

function take(chunk, turn, figures) {
  const choice = chunk.choices[0];
  if (!choice || !choice.speculation) return "";
  const { source, pieces, num_accepted: accepted, rejected } = choice.speculation;
  const drafted = CLASSES[source] ?? "own";
  pieces.forEach((piece, place) => {
    const name = place < accepted ? drafted : "own";
    const token = add(turn, "span", "token " + name, piece);
    token.title = place < accepted ? name + ", accepted" : "the model's own";
    if (place === Math.min(accepted, pieces.length - 1)) {
      for (const { text } of rejected) {
        // What was not kept breaks no lines of the text that was.
        const struck = add(turn, "s", "token rejected", text.replaceAll("\n", "⏎"));
        struck.title = drafted + ", rejected";
      }
    }
  });
  if (figures.first === null && pieces.length) figures.first = performance.now();
  figures.tokens += pieces.length;
  figures.accepted += accepted;
  // Only the first of the rejected tokens was judged; those behind it were not looked at.
  figures.rejected += rejected.length ? 1 : 0;
  figures.rounds += pieces.length ? 1 : 0;
  if (source !== "none") figures.drafted += 1;
  if (source === "cache") figures.hits += 1;
  show(figures);
  return choice.text ?? choice.delta?.content ?? "";
}

async function* chunks(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

function request(prompt) {
  const body = {
    model,
    stream: true,
    return_speculation: true,
    max_tokens: Number(element("max-tokens").value) || 1,
    temperature: Number(element("temperature").value),
    speculate: element("speculate").checked,
  };
  if (element("mode").value === "chat") {
    conversation.push({ role: "user", content: prompt });
    return ["v1/chat/completions", { ...body, messages: conversation }];
  }
  return ["v1/completions", { ...body, prompt }];
}

async function send() {
  const prompt = element("prompt").value;
  if (running || !model || !prompt) return;
  running = new AbortController();
  busy(true);
  element("output").querySelector(".hint")?.remove();
  add(element("output"), "p", "turn given", prompt);
  const turn = add(element("output"), "p", "turn made", "");
  const figures = fresh();
  const [path, body] = request(prompt);
  let text = "";
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: running.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of chunks(response)) {
      text += take(chunk, turn, figures);
      element("output").scrollTop = element("output").scrollHeight;
    }
    if (body.messages) element("prompt").value = "";
  } catch (error) {
    if (error.name !== "AbortError") add(element("output"), "p", "turn error", error.message).setAttribute("role", "alert");
  }
  if (body.messages) {
    if (text) conversation.push({ role: "assistant", content: text });
    else conversation.pop();
  }
  running = null;
  busy(false);
  element("prompt").focus();
}

function busy(is) {
  element("send").disabled = is;
  element("stop").disabled = !is;
}

async function begin() {
  try {
    const response = await fetch("v1/models");
    if (!response.ok) throw new Error((await response.json()).error.message);
    model = (await response.json()).data[0].id;
    element("model").textContent = model;
    element("status").textContent = "ready";
  } catch (error) {
    element("status").textContent = error.message;
    element("status").classList.add("bad");
  }
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
element("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    send();
  }
});
element("stop").addEventListener("click", () => running?.abort());
element("clear").addEventListener("click", () => {
  running?.abort();
  conversation = [];
  element("output").replaceChildren();
  show(fresh());
});
element("show-rejected").addEventListener("change", (event) => {
  document.body.classList.toggle("hide-rejected", !event.target.checked);
});
begin();
