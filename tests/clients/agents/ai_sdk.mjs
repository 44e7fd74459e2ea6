// Vercel's AI SDK, over each of the three dialects.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import { QUESTION, SCHEMAS, STREAMED, TOOLS, URL, WAY } from "./tools.mjs";

const openai = createOpenAI({ baseURL: URL, apiKey: "unused" });
const anthropic = createAnthropic({ baseURL: URL, apiKey: "unused" });
const model = { chat: () => openai.chat("gpt-x"), responses: () => openai.responses("gpt-x"), messages: () => anthropic("claude-x") }[WAY]();
const tools = Object.fromEntries(
  Object.entries(SCHEMAS).map(([name, schema]) => [
    name,
    tool({ description: name, inputSchema: jsonSchema(schema), execute: async (given) => TOOLS[name](given) }),
  ]),
);
const asked = { model, tools, prompt: QUESTION, stopWhen: stepCountIs(6), maxRetries: 0, providerOptions: { openai: { store: false } } };
if (STREAMED) {
  const result = streamText({ ...asked, onError: ({ error }) => { throw error; } });
  let said = "";
  for await (const piece of result.textStream) said += piece;
  console.log(said);
} else {
  console.log((await generateText(asked)).text);
}
