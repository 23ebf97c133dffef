// Clients with OpenAI's address built in: `node chat.mjs fetch`, or `sdk`.
const body = {model: "gpt-4o", messages: [{role: "user", content: "one two three"}]};

async function withFetch() {
  const headers = {Authorization: `Bearer ${process.env.OPENAI_API_KEY}`, "Content-Type": "application/json"};
  return (await fetch("https://api.openai.com/v1/chat/completions", {method: "POST", headers, body: JSON.stringify(body)})).json();
}

async function withTheSDK() {
  const {OpenAI} = await import("openai");
  return new OpenAI().chat.completions.create(body);
}

console.log((await (process.argv[2] === "sdk" ? withTheSDK() : withFetch())).choices[0].message.content);
