// Requests to the server. Errors have the server's own words.

let key = sessionStorage.getItem("key");

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached.");
  }
  if (answer.status === 401 && (await askForKey())) return request(path, options);
  if (!answer.ok) {
    const { detail } = await answer.json().catch(() => ({ detail: `The server answered ${answer.status}.` }));
    throw Object.assign(new Error(detail), { status: answer.status });
  }
  return answer;
}

function askForKey() {
  const dialog = document.getElementById("key-dialog");
  const input = document.getElementById("key");
  input.value = "";
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      key = input.value;
      sessionStorage.setItem("key", key);
      resolve(dialog.returnValue === "ok");
    }, { once: true });
    if (!dialog.open) dialog.showModal();
  });
}

function json(path, body, signal) {
  return request(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal });
}

export async function model() {
  return (await request("v1/model")).json();
}

export async function samples() {
  return (await request("samples")).json();
}

export async function embed(blob, signal) {
  const headers = { "Content-Type": "application/octet-stream" };
  return (await request("v1/embed", { method: "POST", body: blob, headers, signal })).json();
}

// The best mask of one object, and the milliseconds of each step.
export async function predict(imageId, prompt, signal) {
  const answer = await json("v1/predict", { image_id: imageId, prompts: [prompt], low_res_masks: true }, signal);
  const timing = answer.headers.get("Server-Timing") || "";
  const milliseconds = Object.fromEntries([...timing.matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, value]) => [name, Number(value)]));
  const { masks } = await answer.json();
  return { mask: masks[0][0], milliseconds };
}

// Lines of the stream as they arrive.
export async function* everything(imageId, settings, signal) {
  const answer = await json("v1/everything", { image_id: imageId, ...settings }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}
