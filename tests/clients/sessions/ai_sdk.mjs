// A session of the AI SDK with tools: a streamed conversation of three steps and a question after it.
import { createOpenAI } from "@ai-sdk/openai";
import { stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const facts = "The archive has forty rooms, and each of them has a list of its own. ".repeat(80);
const openai = createOpenAI({ baseURL: process.env.OPENAI_BASE_URL, apiKey: process.env.OPENAI_API_KEY });
const tools = {
  look: tool({ description: "Look at a place.", inputSchema: z.object({ place: z.string() }), execute: async ({ place }) => `A list at ${place}.` }),
  count: tool({ description: "Count things.", inputSchema: z.object({ things: z.string() }), execute: async ({ things }) => `42 ${things}.` }),
};
const settings = { model: openai.chat("gpt-4o"), system: `You find things. ${facts}`, tools, stopWhen: stepCountIs(5) };
const messages = [{ role: "user", content: "How many boxes are there? {look:shelf count:boxes} {count:rooms}" }];
const first = streamText({ ...settings, messages });
await first.consumeStream();
messages.push(...(await first.response).messages, { role: "user", content: "Thank you. And the rooms?" });
await streamText({ ...settings, messages }).consumeStream();
