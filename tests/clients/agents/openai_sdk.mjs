// The official client of OpenAI for node: chat completions and responses.
import OpenAI from "openai";
import { QUESTION, SCHEMAS, STREAMED, URL, WAY, called } from "./tools.mjs";

const client = new OpenAI({ baseURL: URL, apiKey: "unused", maxRetries: 0 });

async function chat() {
  const tools = Object.entries(SCHEMAS).map(([name, parameters]) => ({ type: "function", function: { name, parameters } }));
  const messages = [{ role: "user", content: QUESTION }];
  for (;;) {
    const asked = { model: "gpt-x", messages, tools };
    const completion = STREAMED
      ? await client.chat.completions.stream(asked).finalChatCompletion()
      : await client.chat.completions.create(asked);
    const { role, content, tool_calls: calls } = completion.choices[0].message;
    if (!calls?.length) return content;
    messages.push({ role, content, tool_calls: calls.map(({ id, type, function: { name, arguments: text } }) => ({ id, type, function: { name, arguments: text } })) });
    for (const call of calls) {
      const [result] = called(call.function.name, JSON.parse(call.function.arguments));
      messages.push({ role: "tool", tool_call_id: call.id, content: result });
    }
  }
}

async function responses() {
  const tools = Object.entries(SCHEMAS).map(([name, parameters]) => ({ type: "function", name, parameters, strict: true }));
  const input = [{ role: "user", content: QUESTION }];
  for (;;) {
    const asked = { model: "gpt-x", input, tools };
    const response = STREAMED
      ? await client.responses.stream(asked).finalResponse()
      : await client.responses.create(asked);
    const calls = response.output.filter((item) => item.type === "function_call");
    if (!calls.length) return response.output_text;
    for (const { parsed_arguments: _, ...call } of calls) {
      input.push(call);
      const [output] = called(call.name, JSON.parse(call.arguments));
      input.push({ type: "function_call_output", call_id: call.call_id, output });
    }
  }
}

console.log(WAY === "chat" ? await chat() : await responses());
